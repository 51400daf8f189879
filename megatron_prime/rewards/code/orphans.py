"""Orphans of a sandbox: processes whose parent has ended, and that some other process must wait for.

bwrap ends before the first process inside of the sandbox, which then is a child of the machine's first process. In a
container that one may be a program that waits for no children, and each test would leave a zombie.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
REAP_TIMEOUT_S = 2.0


@contextlib.contextmanager
def adopted_orphans() -> Iterator[None]:
    """Make orphans among the descendants of this process its children, inside of the block."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # other systems than Linux have none
    before = ctypes.c_int(0)
    if prctl is None or prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0):
        yield
        return
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def reap_orphan(pid: int) -> None:
    """Kill a process, or with -pid all of a process group, and wait for those that are children of this one."""
    deadline = time.monotonic() + REAP_TIMEOUT_S
    with contextlib.suppress(ChildProcessError):  # they are the children of another process, or gone
        while time.monotonic() < deadline:
            reaped, _ = os.waitpid(pid, os.WNOHANG)
            if reaped == 0:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)
            elif pid > 0:
                return
