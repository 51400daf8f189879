"""Records the provenance of each attempt of a run: versions, git state, machine, job. Standard library only."""

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

from megatron_prime.config.redaction import redact, redact_all
from megatron_prime.observability.durable import make_private, replace_file

PACKAGES = (
    *("megatron-prime", "megatron-core", "torch", "transformers", "safetensors", "numpy", "pydantic"),
    *("transformer-engine", "apex", "triton", "latex2sympy2_extended", "sympy", "datasets", "pyarrow"),
)
"""Packages whose versions are recorded if they are installed."""
JOB_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "WORLD_SIZE",
)
"""Environment variables of the job that are recorded."""
LAST_END = "MEGATRON_PRIME_LAST_END"
"""Environment variable in which a job script says how the attempt before this one ended."""
MAX_DIFF_CHARS = 1 << 20
"""Number of characters of a diff that are kept."""
GIT_TIMEOUT_S = 10.0


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return package -> version for those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, changed files and diff of the git checkout that contains a folder; None without one or git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain") or ""
    # Redacted before it is cut: half of a URL does not show which part is a secret.
    diff = redact(_git(folder, "diff", "HEAD") or "")
    return {
        "commit": commit.strip(),
        "changed": changed.splitlines(),
        "diff": diff[:MAX_DIFF_CHARS],
        "diff_is_whole": len(diff) <= MAX_DIFF_CHARS,
    }


def provenance(code: Path) -> dict[str, Any]:
    """Return the provenance as JSON values; `code` is a folder of the checkout that runs."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": sys.version.split()[0],
        "versions": versions(),
        "git": git_state(code),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "job": {name: os.environ[name] for name in JOB_VARIABLES if name in os.environ},
        "last_end": os.environ.get(LAST_END, "").splitlines(),
    }


def save_provenance(run_dir: Path, attempt: int) -> Path:
    """Write `run_dir/provenance/attempt_<N>.json` and return its path; earlier attempts keep their files."""
    folder = run_dir / "provenance"
    make_private(folder)
    path = folder / f"attempt_{attempt:04d}.json"
    replace_file(path, json.dumps(redact_all(provenance(Path(__file__).parent)), indent=1) + "\n")
    return path


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            # A diff may contain bytes that are not UTF-8.
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    # A missing git or a slow file system must not stop a run, whose record is then incomplete.
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
