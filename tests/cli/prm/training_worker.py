"""Functions that one rank runs in tests/cli/prm/test_training.py."""

import os
import threading
from pathlib import Path
from typing import Any

from tests.support.toy_worker import run, terminate_when_logged

SETTINGS = [
    'prm_training.responses=["single"]',
    "prm_training.num_steps=8",
    "prm_training.prompts_per_step=4",
    "prm_training.held_out_fraction=0.25",
    "prm_training.eval_every=4",
    "prm_training.lr=1e-3",
    "checkpoint.save_every=3",
]


def prm_runs(folder: str) -> dict[str, Any]:
    """Train a PRM without interruption, stop and resume the same run, and start runs from the result."""
    os.chdir(folder)
    parts = [*SETTINGS, "run_dir=prm_parts"]
    results = {
        "check": run("check", "run.toml", "--for", "train-prm", *SETTINGS),
        "whole": run("train-prm", "run.toml", *SETTINGS, "run_dir=prm_whole"),
    }
    log = Path("prm_parts/prm_log/metrics.jsonl")
    stopper = threading.Thread(target=terminate_when_logged, args=(log,))
    stopper.start()
    results["stopped"] = run("train-prm", "run.toml", *parts)
    stopper.join()
    results["other data"] = run("train-prm", "run.toml", *parts, "prm_training.held_out_fraction=0.5")
    results["resumed"] = run("train-prm", "run.toml", *parts)
    results["finished"] = run("train-prm", "run.toml", *parts)
    start = ["run_dir=warm", "prm.path=prm_whole/prm", "trainer.num_steps=1", "data.evaluation=[]"]
    results["refused"] = run("train", "run.toml", *start)
    results["warm"] = run("train", "run.toml", *start, "reference.path=sft", "evaluation.benchmarks={}")
    return results
