"""A handle of a worker process, which can be killed, so that a deadline holds whatever its code does.

Workers are started as new programs and not forked, because the parent has torch's threads and a GPU context. Each
worker leads its own process group, so that killing the group also kills every process that its code started.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from megatron_prime.workers.frames import DONE, HEADER, MORE, TOKEN_BYTES, encode_frame

BACKSTOP_S = 10.0
"""Seconds after the deadline at which a worker ends itself, in case its parent was killed and cannot kill it."""
STARTUP_TIMEOUT_S = 120.0
"""Deadline for a worker to import its code; long, because a cold shared file system is slow."""
MAX_REPLY_BYTES = 1 << 18
"""Size of the longest reply by default, several times that of the longest traceback."""

STRAY_BYTES = (
    "wrote what is no reply: its code, or what that calls, writes to a descriptor that it did not open"
)


class WorkerDiedError(Exception):
    """The worker process ended, or its output is no reply."""


class WorkerTimeoutError(Exception):
    """The worker gave no reply by the deadline."""


class WorkerProcess:
    """A handle of one worker process, used by one thread at a time except for `interrupt`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        timeout_s: float,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        """Start the process; `wait_until_ready` comes next.

        Args:
            module: Module whose function `main` is the program; see `program.serve`.
            arguments: Its arguments; the first one, before these, is the time limit that the worker keeps itself.
            timeout_s: Deadline of a request, in seconds.
            max_reply_bytes: Size of the longest reply.
        """
        self._timeout_s = timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._lock = threading.Lock()
        self._is_reaped = False
        self.num_answered = 0
        """Requests of the last list that the worker was done with when it went on with another one."""
        # -P: the working directory is on the import path only if it is on the parent's, see _worker_environment.
        program = [sys.executable, "-P", "-c", f"from {module} import main; main()"]
        self._process = subprocess.Popen(
            [*program, str(timeout_s + BACKSTOP_S), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_worker_environment(),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the process has loaded its code.

        Raises:
            WorkerDiedError: If it could not load its code, or ended before that.
            WorkerTimeoutError: If STARTUP_TIMEOUT_S passed.

        After either error only `kill` may be called.
        """
        reply = self._exchange(b"", STARTUP_TIMEOUT_S)
        if reply != {"ready": True}:
            raise WorkerDiedError(reply.get("failed") if isinstance(reply, dict) else "it is not ready")

    def ask(self, request: Any, timeout_s: float | None = None) -> Any:  # noqa: ANN401 - JSON values
        """Send a request and return the reply, both JSON values. The deadline is that of the worker by default.

        Raises:
            WorkerDiedError: If the process ended or its output is invalid.
            WorkerTimeoutError: If there is no reply by the deadline.

        After either error only `kill` may be called.
        """
        return self._exchange(encode_frame(request), timeout_s or self._timeout_s)

    def ask_list(self, requests: Sequence[Any]) -> list[Any]:
        """Send requests to a program that takes lists; return the replies to the first of them, at least to one.

        Each request has the deadline of `ask`. Raises as `ask`; `num_answered` then says which request was in work.
        """
        replies = self._exchange(encode_frame(list(requests)), self._timeout_s, len(requests))
        if not isinstance(replies, list) or len(replies) != self.num_answered + 1:
            raise WorkerDiedError("the worker's output is no list of replies")
        return replies

    def interrupt(self) -> None:
        """Kill the whole process group, from any thread; a request in progress fails. `kill` must follow."""
        with self._lock:
            # Not waited for yet, so that its pid, which is the group's id, cannot belong to another process.
            if not self._is_reaped:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the whole process group and wait for the worker to end. May be called twice."""
        self.interrupt()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with self._lock:
            self._is_reaped = True
            self._process.wait()

    def _exchange(self, request: bytes, timeout_s: float, num_requests: int = 1) -> Any:  # noqa: ANN401 - JSON values
        """Send a request, a fresh token when the worker is done, and return the reply that has it."""
        self.num_answered = 0
        deadline = time.monotonic() + timeout_s
        assert self._process.stdout is not None
        # A worker that starts writes without a request, maybe before this process, which may be slow, comes here.
        if request and _is_ready(self._process.stdout.fileno(), select.POLLIN):
            # Either it has ended, or something writes to the descriptor of its replies.
            raise WorkerDiedError(f"the worker {self._exit_reason() or STRAY_BYTES}")
        self._send(request, deadline)
        deadline = self._await_done(deadline, timeout_s, num_requests)
        token = os.urandom(TOKEN_BYTES)
        self._send(token, deadline)
        if self._read_exactly(TOKEN_BYTES, deadline) != token:
            raise WorkerDiedError(f"the worker {STRAY_BYTES}")
        (length,) = HEADER.unpack(self._read_exactly(HEADER.size, deadline))
        if length > self._max_reply_bytes * (self.num_answered + 1):
            raise WorkerDiedError(f"the worker announced {length} bytes: its output is no reply")
        try:
            return json.loads(self._read_exactly(length, deadline))
        except (ValueError, RecursionError) as error:
            raise WorkerDiedError(f"the worker's output is no reply: {error}") from error

    def _await_done(self, deadline: float, timeout_s: float, num_requests: int) -> float:
        """Wait until the worker is done, count what it has answered, and return the deadline of its reply."""
        while True:
            signs = self._read_some(num_requests - self.num_answered, deadline)
            for place, sign in enumerate(signs, start=1):
                if sign == DONE[0] and place == len(signs):
                    return deadline
                if sign != MORE[0] or self.num_answered + 1 == num_requests:
                    raise WorkerDiedError(f"the worker {STRAY_BYTES}")
                self.num_answered += 1
            deadline = time.monotonic() + timeout_s

    def _send(self, frame: bytes, deadline: float) -> None:
        """Write without blocking past the deadline: a worker that hangs never reads from its pipe."""
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        # A blocking write of more than the pipe's buffer would ignore the deadline.
        os.set_blocking(descriptor, False)
        view = memoryview(frame)
        while view:
            _wait_for(descriptor, select.POLLOUT, deadline)
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerDiedError(f"the worker no longer reads: {error}") from error

    def _read_exactly(self, num_bytes: int, deadline: float) -> bytes:
        chunks: list[bytes] = []
        while num_bytes > 0:
            chunks.append(self._read_some(num_bytes, deadline))
            num_bytes -= len(chunks[-1])
        return b"".join(chunks)

    def _read_some(self, most: int, deadline: float) -> bytes:
        """Return at least one byte and at most `most`."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        _wait_for(descriptor, select.POLLIN, deadline)
        chunk = os.read(descriptor, most)
        if not chunk:
            raise WorkerDiedError(f"the worker {self._exit_reason() or 'closed its output'}")
        return chunk

    def _exit_reason(self) -> str:
        """Return how the process ended, or "" if it runs. It stays a zombie, so that nothing else gets its pid."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                time.sleep(0.002)
                continue
            if ended.si_code == os.CLD_EXITED:
                return f"ended with exit code {ended.si_status}"
            return f"was killed by signal {ended.si_status}"
        return ""


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    """Wait until the pipe can be read or written, or was closed. Raises WorkerTimeoutError at the deadline."""
    if not _is_ready(descriptor, event, max(0.0, deadline - time.monotonic())):
        raise WorkerTimeoutError("no reply by the deadline")


def _is_ready(descriptor: int, event: int, seconds: float = 0.0) -> bool:
    poller = select.poll()  # select.select fails for descriptors above 1023
    poller.register(descriptor, event)
    return bool(poller.poll(seconds * 1000))


def _worker_environment() -> dict[str, str]:
    """Return the parent's environment with its import path, so that a worker can import what the parent can."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # Sets of texts have the same order in every worker and attempt: what runs there must be deterministic.
    return os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}
