"""Processes that must not outlive the one that started them, however that one ends."""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; call it first thing in a child.

    `parent_pid` tells a parent that ended before the call: the process then exits at once. Linux only; elsewhere the
    check of the parent is all that is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(f"process {parent_pid}, which started this one, is gone")
