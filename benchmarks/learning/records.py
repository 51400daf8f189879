"""The record of a finished run: one JSON line with its curves; benchmarks/results/learning/TASK.jsonl holds them."""

import fcntl
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning.localisation import localisation
from benchmarks.learning.runs import ROOT, Job, Usage
from megatron_prime.hf.shape import ModelShape, read_shape
from megatron_prime.planning.counts import forward_flops

RESULTS = ROOT / "benchmarks" / "results" / "learning"
WINDOW = 4
"""Steps over which an accuracy is averaged: 512 responses to 128 new problems."""


@dataclass(frozen=True)
class Record:
    """A finished run. Lists have an entry for each step; sums are those from the first step to it."""

    task: str
    method: str
    seed: int
    tried: list[str]
    """Settings of a tuning run that differ from the method's at that time."""
    overrides: list[str]
    """All settings of the method, as they were."""
    commit: str
    finished: str
    rollouts: list[int]
    """Responses sampled, the filtered ones included."""
    accuracy: list[float]
    """Accuracy of the step's responses, which are to problems that no step before has seen."""
    seconds: list[float]
    """Sum of the durations of the steps."""
    cpu_seconds: list[float]
    """CPU time of the run without its start, environments included."""
    flops: list[float]
    """Floating-point operations that the method needs; see `flops_of_step`."""
    auc: list[float | None]
    """See `localisation`; None where it is undefined."""
    pair_accuracy: list[float | None]
    """prm/pair_accuracy."""
    load: float
    """Load average of the machine at the end, on which `seconds` depend."""

    @property
    def final(self) -> float:
        """Accuracy of the last WINDOW steps."""
        return statistics.fmean(self.accuracy[-WINDOW:])

    def smooth(self) -> list[float]:
        """Return the mean accuracy of the last WINDOW steps at each step from WINDOW on."""
        return [
            statistics.fmean(self.accuracy[end - WINDOW : end])
            for end in range(WINDOW, len(self.accuracy) + 1)
        ]


def record_of(job: Job, folder: Path, usage: Usage) -> Record:
    """Return the record of a run in its folder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    places = [place for place, line in enumerate(lines) if "rollout/accuracy_sampled" in line]
    steps = [lines[place] for place in places]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = read_shape(Path(config["model"]["path"]))
    cpu = [
        usage.cpu_at_step[place] if place < len(usage.cpu_at_step) else usage.cpu_seconds for place in places
    ]
    step_s = [step["time/step_s"] for step in steps]
    # The clock starts with the first step, whose own CPU time is taken to be its duration.
    start = cpu[0] - step_s[0]
    return Record(
        task=job.task,
        method=job.method,
        seed=job.seed,
        tried=list(job.tried),
        overrides=list(job.overrides),
        commit=commit(),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        rollouts=_sums([step["rollout/num_rollouts_sampled"] for step in steps], 0),
        accuracy=[round(step["rollout/accuracy_sampled"], 4) for step in steps],
        seconds=_sums(step_s, 2),
        cpu_seconds=[round(each - start, 2) for each in cpu],
        flops=_sums([flops_of_step(step, config, shape) for step in steps], -4),
        auc=localisation(folder, job.task, [step["step"] for step in steps]),
        pair_accuracy=[_rounded(step.get("prm/pair_accuracy")) for step in steps],
        load=round(os.getloadavg()[0], 2),
    )


def flops_of_step(step: dict[str, Any], config: dict[str, Any], shape: ModelShape) -> float:
    """Return the floating-point operations of a step, by planning.counts.forward_flops.

    Sampling is one forward pass of all responses (each token once, as with a cache that lasts for the whole response).
    On the kept responses follow the old log-probs, the reference if it is needed, the PRM's score and its updates, and
    the policy's update; an update is three forward passes.
    """
    mean = step["rollout/mean_response_tokens"] + config["rollout"]["max_prompt_tokens"] / 4
    sampled = step["rollout/num_rollouts_sampled"] * mean
    group = config["rollout"]["group_size"]
    kept = step.get("rollout/num_groups_kept", 0.0) * group * mean
    prm, has_rewards = config["prm"], config["prm"]["enabled"]
    has_model = has_rewards and prm["source"] == "model"
    is_trained = has_model and prm["update_order"] != "none"
    passes = 1 + 3 * config["policy"]["num_epochs"]
    passes += (has_rewards and prm["loss"] != "value") or config["policy"]["kl_coef"] > 0
    passes += has_model + (3 * prm["num_epochs"] if is_trained else 0)
    tokens = sampled + passes * kept
    return forward_flops(shape, tokens, mean, tokens)


def append(record: Record, folder: Path) -> None:
    """Add a record to its task's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{record.task}.jsonl").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(record)) + "\n")


def read(folder: Path = RESULTS) -> list[Record]:
    """Return all records."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [Record(**json.loads(line)) for line in lines]


def is_done(job: Job, records: Iterable[Record]) -> bool:
    """Return whether there is a record with the same settings."""
    key = (job.task, job.method, job.seed, list(job.overrides))
    return any((each.task, each.method, each.seed, each.overrides) == key for each in records)


def commit() -> str:
    """Return the commit that runs, with a + behind it if files differ from it."""
    name = _git("rev-parse", "--short=10", "HEAD")
    return f"{name}+" if _git("status", "--porcelain", "-uno") else name


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _sums(values: Sequence[float], digits: int) -> list[Any]:
    total, sums = 0.0, []
    for value in values:
        total += value
        sums.append(int(round(total, digits)) if digits <= 0 else round(total, digits))
    return sums


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
