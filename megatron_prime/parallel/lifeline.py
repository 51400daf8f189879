"""Child processes that end with the process that started them, however that one ends."""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

_is_tied = False


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; call it first thing in a child.

    A process whose parent is no longer `parent_pid` exits at once: the parent ended before the call. Outside Linux only
    this check is made.
    """
    _ask_the_kernel()
    if os.getppid() != parent_pid:
        sys.exit(f"process {parent_pid}, which started this one, is gone")


def tie_forked_children() -> None:
    """Do the same for every process that this one, or a fork of it, forks from now on, unless it executes a program."""
    global _is_tied
    if _is_tied:
        return
    _is_tied = True
    forking_pid = os.getpid()

    def before() -> None:
        nonlocal forking_pid
        forking_pid = os.getpid()

    def in_child() -> None:
        _ask_the_kernel()
        if os.getppid() != forking_pid:
            os._exit(1)  # Python would swallow an exception here

    os.register_at_fork(before=before, after_in_child=in_child)


def _ask_the_kernel() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
