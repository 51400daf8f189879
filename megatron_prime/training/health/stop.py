"""A run that is asked to stop does so after the step at hand, with a checkpoint: a time limit that comes near, say.

It is asked by SIGUSR1 to any rank's process, or by a file whose name the job's script chose. The script's way is the
file: Slurm signals whole process groups, verifiers and servers among them. Under a script that chose a file, SIGTERM
asks too: some clusters announce a preemption in no other way, and SIGKILL follows after a time of grace.
"""

import os
import signal
from pathlib import Path
from types import FrameType

STOP_SIGNAL = signal.SIGUSR1
STOP_FILE = "MEGATRON_PRIME_STOP_FILE"
"""Environment variable with the file's name."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: start me again, and I go on. Slurm's RequeueExit can name it."""


class RunStopped(Exception):  # noqa: N818 - nothing is wrong
    """The run stopped because it was asked to, after a checkpoint."""


class StopRequest:
    """Whether this process was asked to stop; it listens from the start. Make it in the main thread."""

    def __init__(self) -> None:
        self._is_asked = False
        name = os.environ.get(STOP_FILE)
        self._file = Path(name) if name else None
        signal.signal(STOP_SIGNAL, self._ask)
        if self._file is not None:
            signal.signal(signal.SIGTERM, self._ask)
            # A fork of this process is no rank: what ends it by SIGTERM must not find it listening instead, not even in
            # the moment before its action is set: until then the signal waits.
            os.register_at_fork(
                before=_hold_sigterm, after_in_parent=_release_sigterm, after_in_child=_end_by_sigterm
            )

    def __call__(self) -> bool:
        """True from the first request on."""
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
