"""What a life of a run was made of: versions, git state, machine, job. Stdlib only."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import replace_file

PACKAGES = (
    *("megatron-prime", "megatron-core", "torch", "transformers", "safetensors", "numpy", "pydantic"),
    *("transformer-engine", "apex", "triton", "math-verify", "datasets", "pyarrow"),
)
"""Whose versions are noted, where they are installed."""
JOB_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "WORLD_SIZE",
)
MOST_DIFF = 1 << 20
"""Characters of a diff that are kept."""
GIT_TIMEOUT_S = 10.0


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, changed files and their diff of the checkout around a folder; None where there is none, or no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain") or ""
    diff = _git(folder, "diff", "HEAD") or ""
    return {
        "commit": commit.strip(),
        "changed": changed.splitlines(),
        "diff": diff[:MOST_DIFF],
        "diff_is_whole": len(diff) <= MOST_DIFF,
    }


def provenance(code: Path) -> dict[str, Any]:
    """All of it, as JSON; `code` is a folder of the checkout that runs."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": sys.version.split()[0],
        "versions": versions(),
        "git": git_state(code),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "job": {name: os.environ[name] for name in JOB_VARIABLES if name in os.environ},
    }


def save_provenance(run_dir: Path, life: int) -> Path:
    """Write run_dir/provenance/life_N.json; a resumed run adds one, and keeps the others."""
    folder = run_dir / "provenance"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"life_{life:04d}.json"
    replace_file(path, json.dumps(provenance(Path(__file__).parent), indent=1) + "\n")
    return path


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
