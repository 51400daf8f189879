"""Stopping a run on request, for instance before a time limit: after the current step, with a checkpoint.

The request is SIGUSR1 to the process of any rank, or a file whose name the job's script chose. Scripts use the file,
because Slurm signals whole process groups, including verifiers and servers. If a script chose a file, SIGTERM is a
request too: some clusters announce a preemption in no other way, and SIGKILL follows after a grace period.
"""

import os
import signal
from pathlib import Path
from types import FrameType

STOP_SIGNAL = signal.SIGUSR1
STOP_FILE = "MEGATRON_PRIME_STOP_FILE"
"""Environment variable with the name of that file."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the same command resumes the run. Slurm's RequeueExit can name it."""


class RunStopped(Exception):  # noqa: N818 - nothing is wrong
    """The run stopped because it was asked to, after a checkpoint."""


class StopRequest:
    """Listens for requests to stop this process, from its construction in the main thread on."""

    def __init__(self) -> None:
        self._is_asked = False
        name = os.environ.get(STOP_FILE)
        self._file = Path(name) if name else None
        signal.signal(STOP_SIGNAL, self._ask)
        if self._file is not None:
            signal.signal(signal.SIGTERM, self._ask)
            # A fork of this process is not a rank: SIGTERM must end it as usual. The signal is blocked across the fork,
            # so that none arrives before the child has restored the default action.
            os.register_at_fork(
                before=_hold_sigterm, after_in_parent=_release_sigterm, after_in_child=_end_by_sigterm
            )

    def __call__(self) -> bool:
        """Return whether a request has arrived, now or earlier."""
        if self._file is not None and self._file.exists():
            self._is_asked = True
        return self._is_asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True


def _hold_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_by_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _release_sigterm()
