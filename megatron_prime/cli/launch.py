"""Start the ranks of a job on this machine when neither torchrun nor Slurm did.

It does less than torchrun on purpose: without rendezvous and restarts, an error is reported once and in plain words.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from megatron_prime.parallel.lifeline import die_with_parent

LAUNCHER = "MEGATRON_PRIME_LAUNCHER_PID"
GRACE_S = 10.0
"""Time in seconds between SIGTERM and SIGKILL for the other ranks after a rank has failed."""


def is_rank() -> bool:
    """Return whether this process is one that torchrun, a Slurm script or `launch` started as one rank of a job."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Run `megatron-prime ARGUMENTS` on that many processes of this machine.

    Returns 0 when all succeed, else the exit code of the first that failed, after ending the others. SIGTERM and
    SIGINT go on to the ranks, and end the job with 128 + signal.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(num_processes)}
    # All ranks are on this machine. By default gloo resolves the host name, which fails in some containers.
    defaults = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    shared = {**defaults, **os.environ, **address, LAUNCHER: str(os.getpid())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_prime", *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_processes)
    ]
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received.append(number))
    try:
        return _wait(ranks, received)
    finally:
        _send(ranks, signal.SIGKILL)


def die_with_launcher() -> None:
    """Make a rank that `launch` started end with its launcher, however that ends, so that none trains on alone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        die_with_parent(int(launcher))


def _wait(ranks: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int:
    while True:
        if received:
            # A rank may miss the signal, for example during an import: it gets one chance and is then killed.
            _send(ranks, received[0])
            _end(ranks)
            return 128 + received[0]
        codes = [rank.poll() for rank in ranks]
        failed = next((code for code in codes if code), 0)
        if failed:
            _report_killed(codes)
            _end(ranks)
            # A rank that a signal ended has a negative code; shells report those as 128 + signal.
            return failed if failed > 0 else 128 - failed
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


def _report_killed(codes: Sequence[int | None]) -> None:
    """Print the ranks that a signal ended, which could not report it themselves."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            reason = signal.strsignal(-code) or f"signal {-code}"
            print(f"megatron-prime: rank {rank} was killed by a signal: {reason}", file=sys.stderr)  # noqa: T201


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for ranks that fail for the same reason to report it, then end the remaining ones."""
    for number in (0, signal.SIGTERM):
        deadline = time.monotonic() + (2.0 if number == 0 else GRACE_S)
        if number:
            _send(ranks, number)
        while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
            time.sleep(0.05)


def _send(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
