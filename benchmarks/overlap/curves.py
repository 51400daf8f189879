"""Learning curves of the quickstart task `chain`, on-policy and one step off, with the embedded engine.

The embedded engine samples in the training process by the schedule of one-step-off sampling (docs/adr/0049): servers of
their own change when a batch is sampled, and not with which weights.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.analysis import mean_and_half
from megatron_prime.quickstart.folder import prepare

ROOT = Path(__file__).parents[2]
SCHEDULES = {"on-policy": "rollout.max_staleness=0", "one step off": "rollout.max_staleness=1"}
LAST = 8
"""Steps at the end of a run whose mean accuracy counts, besides the evaluation behind the last step."""


def run(schedule: str, seed: int, root: Path) -> dict[str, Any]:
    """Train on the quickstart's task and return the accuracies of the run.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    folder = root / f"chain-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = prepare(folder, seed, "chain")
    shared = [f"seed={seed}", "logging.backends=[]", "checkpoint.export_hf=false"]
    with (folder / "output.log").open("a") as log:
        if not (folder / "sft" / "config.json").exists():
            sft = [f"model.path={folder / 'task/model'}", f"run_dir={folder / 'sft_run'}"]
            _command(["sft", str(config), *shared[:2], *sft], log)
        run_dir = folder / schedule.replace(" ", "-")
        _command(["train", str(config), *shared, f"run_dir={run_dir}", SCHEDULES[schedule]], log)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {
        "schedule": schedule,
        "seed": seed,
        "accuracy": [
            line["rollout/accuracy_sampled"] for line in lines if "rollout/accuracy_sampled" in line
        ],
        "evaluations": [line["eval/accuracy"] for line in lines if "eval/accuracy" in line],
    }


def _command(words: Sequence[str], log: Any) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "megatron_prime", *words]
    subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)


def is_done(records: Sequence[dict[str, Any]], schedule: str, seed: int) -> bool:
    """Return whether a run has a record."""
    return any((each["schedule"], each["seed"]) == (schedule, seed) for each in records)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return a table of accuracies: means over seeds, and the difference of pairs of runs with its 95 % interval."""
    by_schedule = {
        name: {each["seed"]: each for each in records if each["schedule"] == name} for name in SCHEDULES
    }
    seeds = sorted(set.intersection(*(set(runs) for runs in by_schedule.values())))
    if not seeds:
        return ""
    lines = [
        f"| schedule ({len(seeds)} seeds) | mean accuracy over the run | last {LAST} steps | held out, at the end |",
        "|---|---|---|---|",
    ]
    found = {name: [_accuracies(runs[seed]) for seed in seeds] for name, runs in by_schedule.items()}
    for name, rows in found.items():
        means = (f"{statistics.fmean(each):.3f}" for each in zip(*rows, strict=True))
        lines.append(f"| {name} | {' | '.join(means)} |")
    first, second = found.values()
    differences = [
        mean_and_half([after - before for before, after in zip(befores, afters, strict=True)])
        for befores, afters in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    ]
    lines.append(
        "| difference | " + " | ".join(f"{mean:+.3f} ± {half:.3f}" for mean, half in differences) + " |"
    )
    return "\n".join(lines)


def _accuracies(record: dict[str, Any]) -> tuple[float, float, float]:
    accuracy = record["accuracy"]
    return statistics.fmean(accuracy), statistics.fmean(accuracy[-LAST:]), record["evaluations"][-1]
