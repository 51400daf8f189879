"""Start the ranks of a job on this machine when neither torchrun nor Slurm did.

It does less than torchrun on purpose: without rendezvous and restarts, an error is reported once and in plain words.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from megatron_prime.parallel.lifeline import die_with_parent
from megatron_prime.parallel.out_of_memory import ADVICE, num_oom_kills
from megatron_prime.parallel.out_of_memory import EXIT_CODE as OUT_OF_MEMORY
from megatron_prime.training.health.stop import EXIT_CODE, StopRequest
from megatron_prime.workers.ports import free_port

LAUNCHER = "MEGATRON_PRIME_LAUNCHER_PID"
RESUMABLE = ("train", "sft", "train-prm")
"""Commands that save when they are asked to stop, and that the same command line resumes: those of config.stages, which
takes longer to import."""
REPORT_S = 2.0
"""Seconds in which other ranks may report the same error after a rank has failed."""
STOP_S = 60.0
"""Seconds in which the other ranks must have ended after a rank has stopped on request."""
REAP_S = 10.0
"""Seconds in which killed ranks must be gone."""
UNPREPARED = (-signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a rank that was asked to stop before it could listen, and that had nothing to save."""


def is_rank() -> bool:
    """Return whether this process is one that torchrun, a Slurm script or `launch` started as one rank of a job."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], num_processes: int, is_resumable: bool = False) -> int:
    """Run `megatron-prime ARGUMENTS` on that many processes of this machine.

    SIGINT (Ctrl-C) and SIGTERM ask the ranks of a resumable command to stop and save, and end those of another one. A
    second SIGINT kills them.

    Args:
        arguments: the command and its arguments.
        num_processes: number of ranks.
        is_resumable: whether the same command resumes a run that was asked to stop.

    Returns:
        0 when all ranks succeed; EXIT_CODE when they stopped on request; OUT_OF_MEMORY when the kernel has killed one
        for want of memory; otherwise the exit code of the first that failed, or 128 + signal, after ending the others.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    address |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_processes))
    # All ranks are on this machine. By default gloo resolves the host name, which fails in some containers.
    defaults = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    shared = {**defaults, **os.environ, **address, LAUNCHER: str(os.getpid())}
    ranks: list[subprocess.Popen[bytes]] = []
    # Rank 0 prints what a request leads to, because it knows whether there is anything to save.
    asked = StopRequest(before_end=lambda: _send(ranks, signal.SIGKILL), speaks=False)
    asked.defer()
    kills = num_oom_kills()
    try:
        # A SIGINT to a rank while its interpreter starts would be an error. It stays pending until the rank listens.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for rank in range(num_processes):
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "megatron_prime", *arguments],
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    # A Ctrl-C in the terminal must reach this process alone: a rank would receive it twice.
                    process_group=0,
                )
            )
        accept_interrupts()
        code = _wait(ranks, asked, is_resumable)
        # Nothing but this count tells such a kill from any other one.
        if code == 128 + signal.SIGKILL and num_oom_kills() != kills:
            text = f"megatron-prime: the kernel killed it: out of host memory: {ADVICE['host memory']}"
            print(text, file=sys.stderr)  # noqa: T201
            return OUT_OF_MEMORY
        return code
    finally:
        _send(ranks, signal.SIGKILL)
        _wait_for_all(ranks, REAP_S)  # A rank keeps its lock, port and memory until it is gone.
        if sys.stdout.isatty():
            # A killed rank leaves its status below the cursor (observability/status_area.py).
            print("\x1b[J", end="", flush=True)  # noqa: T201
        asked.close()


def accept_interrupts() -> None:
    """Let SIGINT reach this process, which `launch` started with it blocked if it is a rank."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def die_with_launcher() -> None:
    """Make a rank that `launch` started end with its launcher, however that ends, so that none trains on alone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        die_with_parent(int(launcher))


def _wait(ranks: Sequence[subprocess.Popen[bytes]], asked: StopRequest, is_resumable: bool) -> int:
    has_told_ranks = False
    while True:
        # The file that asks for a stop concerns runs that can be resumed alone.
        is_asked = asked() if is_resumable else asked.number is not None
        if is_asked and not has_told_ranks:
            has_told_ranks = True
            _send(ranks, signal.SIGTERM)
            if not is_resumable:
                return 128 + (asked.number or signal.SIGTERM)
        codes = [rank.poll() for rank in ranks]
        if is_resumable and any(code == EXIT_CODE or code in UNPREPARED for code in codes):
            return _stop(ranks)
        failed = next((code for code in codes if code), 0)
        if failed:
            _report_killed(codes)
            # Ranks that fail for the same reason may report it. The caller kills the others, which wait for a rank
            # that is gone; SIGTERM would only ask them to stop after their step.
            _wait_for_all(ranks, REPORT_S)
            # A rank that a signal ended has a negative code; shells report those as 128 + signal.
            return failed if failed > 0 else 128 - failed
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


def _stop(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for the other ranks after one has stopped on request, and return the exit code of the job."""
    _send(ranks, signal.SIGTERM)  # If a rank stopped before the first step, the others do not know.
    _wait_for_all(ranks, STOP_S)
    if ranks[0].poll() != EXIT_CODE:
        text = "megatron-prime: stopped before the first step; the same command starts it again"
        print(text, file=sys.stderr)  # noqa: T201
    return EXIT_CODE


def _wait_for_all(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(0.05)


def _report_killed(codes: Sequence[int | None]) -> None:
    """Print the ranks that a signal ended, which could not report it themselves."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            reason = signal.strsignal(-code) or f"signal {-code}"
            print(f"megatron-prime: rank {rank} was killed by a signal: {reason}", file=sys.stderr)  # noqa: T201


def _send(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)
