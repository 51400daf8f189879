"""The guardian process between a trainer and one SGLang server: neither a kill nor a crash leaves processes behind.

    trainer --stdin pipe--> guardian --> server and its schedulers, in a session and process group of their own

Run by path with any Python: `python child.py GRACE_SECONDS COMMAND...`; standard library only. The kernel closes the
pipe however the trainer ends. The guardian then ends the server's whole process group; it does the same when the
server's main process dies and leaves schedulers behind. If the guardian itself is killed, the kernel kills the server's
main process, whose children watch it in turn.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. Does nothing except on Linux."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def run(command: list[str], grace_s: float) -> int:
    """Run `command` until it ends or standard input closes; return its exit status as a shell does.

    When standard input closes, the process group gets SIGTERM, and SIGKILL after grace_s seconds.
    """
    trainer = os.getppid()
    # SGLang's processes talk through sockets in the file system, which other users must not open.
    os.umask(0o077)
    # Orphans of the server become children of this process, which can then wait for their end.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    # Standard output is the trainer's pipe and carries only the pid, so the server's output goes to standard error.
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    os.write(1, f"{server.pid}\n".encode())
    # A process that the trainer forked may keep the pipe open after the trainer's death, so watch the parent too.
    while server.poll() is None and not signals and os.getppid() == trainer and not _input_closed():
        pass
    if server.poll() is None:
        _signal_group(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
    # Schedulers outlive a main process that crashes, so the group is killed even if the server has ended by itself.
    _signal_group(server.pid, signal.SIGKILL)
    status = server.wait()
    _reap(grace_s)
    return status if status >= 0 else 128 - status


def _input_closed() -> bool:
    """Wait up to POLL_S seconds and return whether standard input has ended."""
    try:
        readable, _, _ = select.select([0], [], [], POLL_S)
        return bool(readable) and os.read(0, 1) == b""
    except OSError:
        return True


def _reap(patience_s: float) -> None:
    """Wait until no child is left, at most `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(POLL_S)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], float(sys.argv[1])))
