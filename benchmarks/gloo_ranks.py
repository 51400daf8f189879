"""Real processes over gloo on this machine, for measurements that need more than one rank."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_prime.workers.ports import free_port

ROOT = Path(__file__).parents[1]


def job_environment(num_processes: int, tree: Path = ROOT) -> dict[str, str]:
    """Return the environment of the ranks of a new job, without RANK and LOCAL_RANK; `tree` holds their code."""
    return os.environ | {
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tree),
    }


def run_ranks(module: str, arguments: Sequence[str], num_processes: int, timeout_s: float = 300) -> None:
    """Run `python -m MODULE ARGUMENTS` on every rank.

    Raises:
        RuntimeError: a rank failed.
        subprocess.TimeoutExpired: a rank was still running after `timeout_s`; all have been killed.
    """
    job = job_environment(num_processes)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            env=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_processes)
    ]
    try:
        codes = [rank.wait(timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise RuntimeError(f"the ranks ended with exit codes {codes}")
