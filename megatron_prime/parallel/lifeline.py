"""Ties child processes to their parent, so that they end with it even when it is killed."""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

_is_tied = False


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends. Call it at the very start of a child.

    Exit at once if the parent is no longer `parent_pid`, because it then ended before the call. On systems other than
    Linux, this check is all that the function does.
    """
    _request_death_signal()
    if os.getppid() != parent_pid:
        sys.exit(f"process {parent_pid}, which started this one, is gone")


def tie_forked_children() -> None:
    """Tie all future forks of this process, and their forks, to their parents; an executed program is not tied.

    They ignore SIGINT, SIGTERM and SIGUSR1, which a terminal or Slurm sends to all processes: their parent acts.
    """
    global _is_tied
    if _is_tied:
        return
    _is_tied = True
    forking_pid = os.getpid()

    def before() -> None:
        nonlocal forking_pid
        forking_pid = os.getpid()

    def in_child() -> None:
        _request_death_signal()
        ignore_requests_to_end()
        # The parent may have ended between the fork and the request, which then never takes effect.
        if os.getppid() != forking_pid:
            os._exit(1)  # Python ignores exceptions in fork handlers, SystemExit included.

    os.register_at_fork(before=before, after_in_child=in_child)


def ignore_requests_to_end() -> None:
    """Ignore the signals that ask a run to stop in this process, whose parent acts on them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _request_death_signal() -> None:
    # Other systems than Linux have no prctl.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
