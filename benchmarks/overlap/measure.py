"""Runs of the product with each schedule, an SGLang server on one core and the trainer on another."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.overlap import task

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("measured.toml")
MODULES = ("watched_run.py", "slow_verifier.py")
"""Modules of this folder that also run beside another commit of the package."""
ROUNDS_COMMIT = "d4a56f91"
"""The last commit that samples in rounds."""
TRAINER_CORE, SERVER_CORE = 0, 1


@dataclass(frozen=True)
class Row:
    """A schedule."""

    overrides: tuple[str, ...] = ()
    commit: str = ""
    """Commit of the package that runs it; empty for the working tree."""


ROWS = {
    "rounds": Row(commit=ROUNDS_COMMIT),
    "streaming": Row(),
    "one step off": Row(("rollout.max_staleness=1",)),
    "k = 4, wait": Row(("rollout.max_staleness=4",)),
    "k = 4, continue": Row(("rollout.max_staleness=4", "rollout.partial=continue")),
}


def fine_tuned(root: Path, seed: int = 0) -> Path:
    """Return the folder of the task and its fine-tuned model; both are made if they are missing."""
    if not (root / "task").exists():
        task.write(root / "partial", seed)
        (root / "partial").rename(root / "task")
    if not (root / "sft" / "config.json").exists():
        words = [
            f"model.path={root / 'task/model'}",
            f"run_dir={root / 'sft_run'}",
            f"sft.output={root / 'sft'}",
        ]
        words += [f'sft.data=["{root / "task/sft.jsonl"}"]', f'data.train=["{root / "task/train.jsonl"}"]']
        command = [sys.executable, "-m", "megatron_prime", "sft", str(CONFIG), *words]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return root


def package_folder(commit: str, root: Path) -> Path:
    """Return a folder with the package as it was at a commit, or the working tree.

    Raises:
        RuntimeError: git does not know the commit, as in a copy without its history.
    """
    if not commit:
        return ROOT
    folder = root / f"package-{commit}"
    if not folder.exists():
        found = subprocess.run(
            ["git", "archive", commit, "megatron_prime"], cwd=ROOT, capture_output=True, check=False
        )
        if found.returncode:
            raise RuntimeError(f"git archive {commit} failed: {found.stderr.decode().strip()}")
        with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
            archive.extractall(folder.with_suffix(".partial"), filter="data")
        folder.with_suffix(".partial").rename(folder)
    return folder


def pinned_python(python: Path, core: int, folder: Path) -> Path:
    """Write a script that runs an interpreter on one core, and return its path."""
    script = folder / f"python-on-core-{core}"
    script.write_text(f'#!/bin/sh\nexec taskset -c {core} {shlex.quote(str(python.absolute()))} "$@"\n')
    script.chmod(0o755)
    return script


def run(name: str, root: Path, python: Path, num_steps: int, num_verifiers: int = 8) -> dict[str, Any]:
    """Carry out a run and return its record: the metrics of its steps, and what its watches saw.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    row, folder = ROWS[name], root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    modules = root / "modules"
    modules.mkdir(parents=True, exist_ok=True)
    for module in MODULES:
        shutil.copy(Path(__file__).with_name(module), modules)
    overrides = [
        f"model.path={root / 'sft'}",
        f'data.train=["{root / "task/train.jsonl"}"]',
        f"run_dir={folder}",
        f"rollout.sglang.python={pinned_python(python, SERVER_CORE, root)}",
        f"trainer.num_steps={num_steps}",
        f"reward.num_workers={num_verifiers}",
        *row.overrides,
    ]
    command = ["taskset", "-c", str(TRAINER_CORE), sys.executable, "-m", "watched_run"]
    command += [str(root / "watched.json"), "train", str(CONFIG), *overrides]
    paths = [str(package_folder(row.commit, root)), str(modules)]
    # Without it Python would put the current folder, with this package, before the others.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    load = os.getloadavg()[0]
    with (root / "output.log").open("a") as log:
        subprocess.run(command, check=True, cwd=root, env=environment, stdout=log, stderr=log)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "row": name,
        "commit": row.commit,
        "load": [load, os.getloadavg()[0]],
        "metrics": [_numbers(json.loads(line)) for line in lines],
        "watched": json.loads((root / "watched.json").read_text()),
    }


def append(record: dict[str, Any], path: Path) -> None:
    """Add a record to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, or nothing if there is none."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _numbers(
    metrics: dict[str, Any], groups: Sequence[str] = ("time/", "rollout/", "throughput/", "eval/")
) -> dict:
    return {name: value for name, value in metrics.items() if name.startswith(tuple(groups))}
