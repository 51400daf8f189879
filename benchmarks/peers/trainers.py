"""Start a trainer on a workload in processes of its own, and join the costs that its processes report."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.task import GROUP_SIZE, WORKLOADS, Workload

ROWS_PER_MICROBATCH = 16
TIMEOUT_S = 1800
REFERENCE = "TRL RLOO"


@dataclass(frozen=True)
class Trainer:
    """A trainer in one of its variants."""

    is_ours: bool
    method: str
    tensor: int = 1
    """Tensor-parallel size (ours alone)."""
    cache: str | None = None
    """TRL's cache_implementation."""


TRAINERS = {
    "ours RLOO": Trainer(True, "RLOO"),
    REFERENCE: Trainer(False, "RLOO"),
    "TRL RLOO static": Trainer(False, "RLOO", cache="static"),
    "TRL GRPO": Trainer(False, "GRPO"),
    "ours PRIME": Trainer(True, "PRIME"),
    "ours RLOO tp2": Trainer(True, "RLOO", tensor=2),
}
ONE_PROCESS = tuple(name for name, trainer in TRAINERS.items() if trainer.tensor == 1)


def trainers_of(workload: str) -> tuple[str, ...]:
    """Return the names of the trainers that are measured on a workload."""
    if WORKLOADS[workload].num_processes > 1:
        return ("ours RLOO", REFERENCE, "ours RLOO tp2")
    if WORKLOADS[workload].has_equal_lengths:
        return ("ours RLOO", REFERENCE)
    return ONE_PROCESS


def run(work: Path, workload: str, name: str) -> dict[str, Any]:
    """Return the costs of a run: those of each step but the first, and the peak memory."""
    folder = work / workload
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if not TRAINERS[name].is_ours:
        # TRL's process must not see this project's packages.
        environment.pop("PYTHONPATH", None)
    log_path = work / "output.log"
    with log_path.open("w") as log:
        code = subprocess.run(
            _command(work, folder, workload, TRAINERS[name], output),
            env=environment,
            stdout=log,
            stderr=log,
            timeout=TIMEOUT_S,
            check=False,
        ).returncode
    reports = [json.loads(path.read_text()) for path in sorted(output.iterdir())]
    if code or len(reports) != WORKLOADS[workload].num_processes:
        raise SystemExit(f"{name}, {workload}: exit code {code}, see {log_path}")
    return joined(reports)


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the costs of a run from those of its processes, without the first step."""
    steps = [
        {
            "step_s": max(part["step_s"] for part in parts),
            "cpu_s": sum(part["cpu_s"] for part in parts),
            "sampling_s": max(part["sampling_s"] for part in parts),
            "sampled_tokens": sum(part["sampled_tokens"] for part in parts),
        }
        for parts in zip(*(report["steps"] for report in reports), strict=True)
    ]
    return {"steps": steps[1:], "peak_mb": sum(report["peak_mb"] for report in reports)}


def _command(work: Path, folder: Path, workload: str, trainer: Trainer, output: Path) -> list[str]:
    number = WORKLOADS[workload].num_processes
    python = sys.executable if trainer.is_ours else str(work / "trl/bin/python")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    start = [python, *launcher * (number > 1)]
    if trainer.is_ours:
        run_dir = folder / f"ours-{trainer.method}"
        shutil.rmtree(run_dir, ignore_errors=True)
        options = [str(folder), workload, trainer.method, str(trainer.tensor), str(output)]
        return [*start, "-m", "benchmarks.peers.ours", *options]
    job = work / "job.json"
    job.write_text(json.dumps(_job(folder, WORKLOADS[workload], trainer, output)))
    return [*start, str(Path(__file__).with_name("trl_trainer.py")), str(job)]


def _job(folder: Path, workload: Workload, trainer: Trainer, output: Path) -> dict[str, Any]:
    """Return the job of `trl_trainer`; every process has an equal share of the step's responses."""
    share = workload.prompts_per_step * GROUP_SIZE // workload.num_processes
    return {
        "folder": str(folder),
        "method": trainer.method,
        "cache": trainer.cache,
        "threads": 1,
        "samples_per_process": share,
        "rows_per_microbatch": min(share, ROWS_PER_MICROBATCH),
        "group_size": GROUP_SIZE,
        "num_steps": workload.num_steps,
        "max_response_tokens": workload.max_response_tokens,
        "output": str(output),
    }
