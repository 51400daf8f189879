"""Verification in worker processes that can be killed, so that a deadline holds whatever the verifier does.

    verify_all -> one thread per worker -> frames over pipes -> worker process -> frames -> outcomes in order

Workers are started as new programs and not forked, because the parent has torch's threads and a GPU context. Each
worker leads its own process group, so that killing the group also kills every process that the verifier started.
"""

import contextlib
import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from megatron_prime.rewards.outcome import OutcomeCounts, VerificationOutcome, VerificationStatus
from megatron_prime.rewards.verifier import get, run_verifier
from megatron_prime.rewards.worker import DONE, HEADER, TOKEN_BYTES, encode_frame

WORKER_PROGRAM = "from megatron_prime.rewards.worker import main; main()"
BACKSTOP_S = 10.0
"""Seconds after the deadline at which a worker ends itself, in case its pool was killed and cannot kill it."""
STARTUP_TIMEOUT_S = 120.0
"""Deadline for a worker to import its verifier; long, because a cold shared file system is slow."""
NUM_ATTEMPTS = 2
"""Attempts per response. A worker may die for an unrelated reason, such as the machine's memory, so one retry."""
MAX_REPLY_BYTES = 1 << 18
"""Size of the longest reply, several times that of the longest traceback."""

STRAY_BYTES = (
    "wrote what is no reply: the verifier, or what it calls, writes to a descriptor that it did not open"
)


class WorkerDiedError(Exception):
    """The worker process ended, or its output is not an outcome."""


class WorkerTimeoutError(Exception):
    """The worker gave no outcome by the deadline."""


class WorkerProcess:
    """A handle of one worker process, used by one thread at a time."""

    def __init__(self, verifier_name: str, module: str, timeout_s: float, settings: str = "{}") -> None:
        """Start the process and wait until its verifier is loaded.

        Raises:
            WorkerDiedError: If the process could not load the verifier, or ended before that.
            WorkerTimeoutError: If STARTUP_TIMEOUT_S passed.
        """
        self._timeout_s = timeout_s
        # -P: the working directory is on the import path only if it is on the parent's, see _worker_environment.
        program = [sys.executable, "-P", "-c", WORKER_PROGRAM]
        self._process = subprocess.Popen(
            [*program, verifier_name, module, str(timeout_s + BACKSTOP_S), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_worker_environment(),
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + STARTUP_TIMEOUT_S
            reply = self._ask(b"", deadline)
            if reply != {"ready": True}:
                raise WorkerDiedError(reply.get("failed") if isinstance(reply, dict) else "it is not ready")
        except (WorkerDiedError, WorkerTimeoutError):
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def verify(self, response_text: str, answer: str) -> VerificationOutcome:
        """Verify one response.

        Raises:
            WorkerDiedError: If the process ended or its output is invalid.
            WorkerTimeoutError: If there is no outcome by the deadline.

        After either error only `kill` may be called.
        """
        deadline = time.monotonic() + self._timeout_s
        frame = encode_frame({"response_text": response_text, "answer": answer})
        try:
            return VerificationOutcome.from_message(self._ask(frame, deadline))
        except ValueError as error:
            raise WorkerDiedError(f"the worker's output is not an outcome: {error}") from error

    def kill(self) -> None:
        """Kill the whole process group and wait for the worker to end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The worker is not waited for yet, so its pid, which is the group's id, cannot belong to another process.
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _send(self, frame: bytes, deadline: float) -> None:
        """Write without blocking past the deadline: a worker that hangs never reads from its pipe."""
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        os.set_blocking(
            descriptor, False
        )  # a blocking write of more than the pipe's buffer would ignore the deadline
        view = memoryview(frame)
        while view:
            _wait_for(descriptor, select.POLLOUT, deadline)
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerDiedError(f"the worker no longer reads: {error}") from error

    def _ask(self, request: bytes, deadline: float) -> Any:  # noqa: ANN401 - JSON values
        """Send a request, a fresh token when the worker is done, and return the reply that has it."""
        assert self._process.stdout is not None
        if _is_ready(self._process.stdout.fileno(), select.POLLIN):
            # Either it has ended, or something writes to the descriptor of its replies.
            raise WorkerDiedError(f"the worker {self._exit_reason() or STRAY_BYTES}")
        self._send(request, deadline)
        if self._read_exactly(len(DONE), deadline) != DONE:
            raise WorkerDiedError(f"the worker {STRAY_BYTES}")
        token = os.urandom(TOKEN_BYTES)
        self._send(token, deadline)
        if self._read_exactly(TOKEN_BYTES, deadline) != token:
            raise WorkerDiedError(f"the worker {STRAY_BYTES}")
        (length,) = HEADER.unpack(self._read_exactly(HEADER.size, deadline))
        if length > MAX_REPLY_BYTES:
            raise WorkerDiedError(f"the worker announced {length} bytes: its output is not an outcome")
        try:
            return json.loads(self._read_exactly(length, deadline))
        except (ValueError, RecursionError) as error:
            raise WorkerDiedError(f"the worker's output is not an outcome: {error}") from error

    def _read_exactly(self, num_bytes: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        chunks: list[bytes] = []
        while num_bytes > 0:
            _wait_for(descriptor, select.POLLIN, deadline)
            chunk = os.read(descriptor, num_bytes)
            if not chunk:
                raise WorkerDiedError(f"the worker {self._exit_reason() or 'closed its output'}")
            chunks.append(chunk)
            num_bytes -= len(chunk)
        return b"".join(chunks)

    def _exit_reason(self) -> str:
        """Return how the process ended, or "" if it runs."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ""
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


class VerifierPool:
    """Verifies batches of responses in `num_workers` processes, each response under a deadline.

    A verifier that declares `in_process` runs in the calling process instead, and no worker is started.
    Close the pool, or use it as a context manager. A pool must not be used by several threads at the same time.
    """

    def __init__(
        self,
        name: str,
        num_workers: int,
        timeout_s: float,
        module: str = "megatron_prime.rewards",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the workers and wait until they are ready.

        Args:
            name: Name of a registered verifier.
            num_workers: Number of processes, each of which verifies one response at a time.
            timeout_s: Seconds after which a worker that has not returned an outcome is killed.
            module: Module that a worker imports to register `name`; a verifier of your own needs its own module.
            settings: Keyword arguments of the verifier, as JSON values.

        Raises:
            ValueError: If the name is unknown, or num_workers or timeout_s is not positive.
            RuntimeError: If a worker does not start.
        """
        if num_workers < 1 or timeout_s <= 0:
            raise ValueError(
                f"reward.num_workers = {num_workers} and reward.timeout_s = {timeout_s} must both be positive"
            )
        # Worker processes import this module, and have no use for the logs.
        from megatron_prime.observability.activity import VERIFIER, worker

        # Built here as well, although workers build their own: invalid settings fail before any process starts.
        verifier = get(name, settings)
        self._in_process_verifier = verifier if verifier.in_process else None
        self._worker_arguments = (name, module, timeout_s, json.dumps(dict(settings or {})))
        self._counts = OutcomeCounts()
        self._worker = worker(f"verifier {name}", VERIFIER)
        self._is_closed = False
        self._no_start = ""
        """Why no worker could be started, twice in a row, since the begin of this batch."""
        self._workers: list[WorkerProcess | None] = []
        self._threads: ThreadPoolExecutor | None = None
        if self._in_process_verifier is None:
            self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="verifier")
            self._workers = [None] * num_workers
            try:
                list(self._threads.map(self._start_worker, range(num_workers)))
            except (WorkerDiedError, WorkerTimeoutError, OSError) as error:
                self.close()
                raise RuntimeError(f"a process of verifier {name!r} does not start: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        return tuple(worker.pid for worker in self._workers if worker is not None)

    @property
    def counts(self) -> dict[str, int]:
        """Number of outcomes by status since the pool was created, and as `restarts` the number of new workers."""
        return self._counts.as_dict()

    def verify_all(self, responses: Sequence[tuple[str, str]]) -> list[VerificationOutcome]:
        """Verify pairs of (response text, answer).

        Returns:
            One outcome per pair, in order. The reward is NaN with status timeout if the worker was killed at the
            deadline, and NaN with status error if the verifier raised or its process died twice. A response never
            causes an exception here.

        Raises:
            RuntimeError: If the pool is closed.
        """
        if self._is_closed:
            raise RuntimeError("this VerifierPool is closed")
        if self._in_process_verifier is not None:
            outcomes = [
                run_verifier(self._in_process_verifier, text, answer)
                for batch in self._worker.each([responses])
                for text, answer in batch
            ]
        else:
            outcomes = self._verify_in_workers(responses)
        self._counts.add(outcomes)
        return outcomes

    def close(self) -> None:
        """Kill the workers; a second call does nothing."""
        self._is_closed = True
        if self._threads is not None:
            # This waits for verifications in progress, each of which ends by its deadline. The others do not begin.
            self._threads.shutdown()
        for slot, worker in enumerate(self._workers):
            if worker is not None:
                worker.kill()
                self._workers[slot] = None

    def _verify_in_workers(self, responses: Sequence[tuple[str, str]]) -> list[VerificationOutcome]:
        assert self._threads is not None
        self._no_start = ""
        # A shared queue instead of equal shares: some responses take a thousand times longer than others.
        indices: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(responses)):
            indices.put(index)

        # One thread per worker empties the queue: a worker's pipes are therefore never used by two threads.
        def drain(slot: int) -> list[tuple[int, VerificationOutcome]]:
            done = []
            while True:
                if self._is_closed:
                    raise RuntimeError("this VerifierPool was closed during a batch")
                try:
                    index = indices.get_nowait()
                except queue.Empty:
                    return done
                self._worker.begin()
                try:
                    done.append((index, self._verify_one(slot, *responses[index])))
                finally:
                    self._worker.end()

        self._worker.submit(len(responses))
        outcomes: dict[int, VerificationOutcome] = {}
        try:
            for done in self._threads.map(drain, range(len(self._workers))):
                outcomes.update(done)
        finally:
            self._worker.withdraw(len(responses) - len(outcomes))
        return [outcomes[index] for index in range(len(responses))]

    def _verify_one(self, slot: int, response_text: str, answer: str) -> VerificationOutcome:
        """Verify one response by the worker in `slot`, which is replaced if it dies or has to be killed."""
        detail = ""
        for attempt in range(NUM_ATTEMPTS):
            if self._no_start and self._workers[slot] is None:
                detail = self._no_start
                break
            try:
                worker = self._workers[slot] or self._restart_worker(slot)
            except (WorkerDiedError, WorkerTimeoutError, OSError) as error:
                detail = f"no worker can be started: {error}"
                if attempt == NUM_ATTEMPTS - 1:
                    # A start may take minutes: the other responses of the batch do not wait for it one by one.
                    self._no_start = detail
                continue
            try:
                return worker.verify(response_text, answer)
            except WorkerTimeoutError as error:
                # Not retried: a deterministic verifier would run out of time again.
                self._discard_worker(slot)
                return VerificationOutcome(math.nan, VerificationStatus.TIMEOUT, str(error))
            except WorkerDiedError as error:
                self._discard_worker(slot)
                detail = str(error)
        return VerificationOutcome(math.nan, VerificationStatus.ERROR, detail)

    def _start_worker(self, slot: int) -> WorkerProcess:
        worker = WorkerProcess(*self._worker_arguments)
        self._workers[slot] = worker
        return worker

    def _restart_worker(self, slot: int) -> WorkerProcess:
        worker = self._start_worker(slot)
        self._counts.add_restart()
        return worker

    def _discard_worker(self, slot: int) -> None:
        worker = self._workers[slot]
        assert worker is not None
        self._workers[slot] = None
        worker.kill()


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    """Wait until the pipe can be read or written, or was closed. Raises WorkerTimeoutError at the deadline."""
    if not _is_ready(descriptor, event, max(0.0, deadline - time.monotonic())):
        raise WorkerTimeoutError("no outcome by the deadline")


def _is_ready(descriptor: int, event: int, seconds: float = 0.0) -> bool:
    poller = select.poll()  # select.select fails for descriptors above 1023
    poller.register(descriptor, event)
    return bool(poller.poll(seconds * 1000))


def _worker_environment() -> dict[str, str]:
    """Return the parent's environment with its import path, so that a worker can import what the parent can."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
