"""Stopping a run on request, for instance by Ctrl-C or before a time limit: after the current step, with a checkpoint.

The request is SIGINT (Ctrl-C), SIGTERM or SIGUSR1 to the process of any rank, or a file whose name the job's script
chose. Scripts use the file, because Slurm signals whole process groups, including verifiers and servers. A run that is
still starting has nothing to save and ends at once. So does one that receives SIGINT after it was asked to stop.

Python runs signal handlers between two instructions of the main thread, which may wait in a collective for minutes.
A thread therefore reads the numbers of the signals from a pipe, into which the interpreter writes them immediately.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

STOP_SIGNAL = signal.SIGUSR1
STOP_FILE = "MEGATRON_PRIME_STOP_FILE"
"""Environment variable with the name of that file."""
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the same command resumes the run. Slurm's RequeueExit can name it."""
AT_ONCE_CODE = 128 + signal.SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM, STOP_SIGNAL)


class RunStopped(Exception):  # noqa: N818 - nothing is wrong
    """The run stopped because it was asked to, after a checkpoint."""


class StopRequest:
    """Listens for requests to stop this process, from its construction in the main thread until it is closed.

    Until `defer` is called, a request ends the process with EXIT_CODE; afterwards it is returned by calls.

    Args:
        before_end: called before a second Ctrl-C ends the process.
        speaks: print what a request leads to; true on one process of a job.
    """

    def __init__(self, before_end: Callable[[], None] = lambda: None, speaks: bool = True) -> None:
        self.number: int | None = None
        """The signal of the first request; None before it, or if the request was the file."""
        self._is_asked = False
        self._is_deferred = False
        self._before_end = before_end
        self._speaks = speaks
        name = os.environ.get(STOP_FILE)
        self._file = Path(name) if name else None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._former = {number: signal.signal(number, _leave_to_the_thread) for number in SIGNALS}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="stop requests", daemon=True).start()
        _prepare_forks()

    def __call__(self) -> bool:
        """Return whether a request has arrived, now or earlier."""
        if self._file is not None and self._file.exists():
            self._is_asked = True
        return self._is_asked

    def defer(self) -> None:
        """Leave it to the caller to look for requests, and to stop where the run can be continued."""
        self._is_deferred = True

    def close(self) -> None:
        """Stop listening, and restore the handlers from before. A second call does nothing."""
        if self._writing < 0:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._writing)  # This ends the thread.
        self._writing = -1

    def _listen(self) -> None:
        while numbers := os.read(self._reading, 64):
            for number in numbers:
                self._receive(number)
        os.close(self._reading)

    def _receive(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if not self._is_deferred:
            self._end(
                EXIT_CODE, "stopped before the first step; nothing is lost, the same command starts it again"
            )
        elif self._is_asked:
            if number == signal.SIGINT:
                self._before_end()
                self._end(
                    AT_ONCE_CODE, "ended at once; the same command continues from the newest checkpoint"
                )
        else:
            self._is_asked, self.number = True, number
            self._say(
                "stopping after the current step, with a checkpoint; Ctrl-C again ends at once, and loses the step"
            )

    def _end(self, code: int, text: str) -> None:
        self._say(text)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)

    def _say(self, text: str) -> None:
        if self._speaks:
            with contextlib.suppress(OSError):
                # Not by sys.stderr: its lock, held by a thread while the interpreter ends, would abort the process.
                # A status on the terminal would show through; it is drawn again below the message.
                erase = "\r\x1b[J" if os.isatty(2) else ""
                os.write(2, f"{erase}megatron-prime: {text}\n".encode())


_request: StopRequest | None = None


def listen() -> StopRequest:
    """Return the request of this process, which listens from the first call on."""
    global _request
    if _request is None:
        _request = StopRequest(speaks=os.environ.get("RANK", "0") == "0")
    return _request


def stop_listening() -> None:
    """Close the request of this process, if there is one."""
    global _request
    if _request is not None:
        _request.close()
        _request = None


def _leave_to_the_thread(number: int, frame: object) -> None:
    """Do nothing: a signal is written to the pipe only if it has a handler."""


_is_prepared = False


def _prepare_forks() -> None:
    """Have signals act on forks of this process as on any process: a fork is not a rank, and shares the pipe."""
    global _is_prepared
    if not _is_prepared:
        _is_prepared = True
        # The signals are blocked across the fork, so that none arrives before the child has restored the actions.
        os.register_at_fork(
            before=_hold_signals, after_in_parent=_release_signals, after_in_child=_restore_in_fork
        )


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _restore_in_fork() -> None:
    global _request
    if signal.getsignal(signal.SIGTERM) is _leave_to_the_thread:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    _request = None
    _release_signals()
