"""Verification in worker processes that can be killed, so that a deadline holds whatever the verifier does.

    verify_all -> a queue of all callers -> one thread per worker -> frames over pipes -> worker process -> outcomes

The processes are those of `workers.process`.
"""

import json
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from megatron_prime.rewards.outcome import OutcomeCounts, VerificationOutcome, VerificationStatus
from megatron_prime.rewards.verifier import TEXTS, get, run_verifier
from megatron_prime.rewards.worker import FIELDS
from megatron_prime.sample import Sample
from megatron_prime.workers.process import (
    STARTUP_TIMEOUT_S,
    WorkerDiedError,
    WorkerProcess,
    WorkerTimeoutError,
)

NUM_ATTEMPTS = 2
"""Attempts per response. A worker may die for an unrelated reason, such as the machine's memory, so one retry."""

CLOSED = "this VerifierPool was closed during a batch"


class VerifierPool:
    """Verifies batches of responses in `num_workers` processes, each response under a deadline.

    A verifier that declares `in_process` runs in the calling process instead, and no worker is started.
    Close the pool, or use it as a context manager. Threads may share a pool: responses are verified in the order in
    which they were asked for, and each caller waits for its own alone.
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
        self._worker_arguments = (name, module, json.dumps(dict(settings or {})))
        self._timeout_s = timeout_s
        self._fields: Sequence[str] = TEXTS
        """The fields of a sample that the verifier uses, as its workers say; prompts and tokens may be long."""
        self._counts = OutcomeCounts()
        self._worker = worker(f"verifier {name}", VERIFIER)
        self._is_closed = False
        self._lock = threading.Lock()
        self._num_callers = 0
        """Threads that wait for outcomes of workers."""
        self._no_start = ""
        """Why no worker could be started, twice in a row, since nobody waited last."""
        self._workers: list[WorkerProcess | None] = []
        self._free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Indices of workers that have no response. There are as many threads as workers, so it is never empty."""
        self._threads: ThreadPoolExecutor | None = None
        if self._in_process_verifier is None:
            self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="verifier")
            self._workers = [None] * num_workers
            for slot in range(num_workers):
                self._free_slots.put(slot)
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

    def verify_all(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        """Verify responses.

        Returns:
            One outcome per response, in order. The reward is NaN with status timeout if the worker was killed at the
            deadline, and NaN with status error if the verifier raised or its process died twice. A response never
            causes an exception here.

        Raises:
            RuntimeError: If the pool is closed.
        """
        if self._is_closed:
            raise RuntimeError("this VerifierPool is closed")
        if self._in_process_verifier is not None:
            with self._lock:  # one thread at a time, as in a worker process
                outcomes = [
                    run_verifier(self._in_process_verifier, sample)
                    for batch in self._worker.each([samples])
                    for sample in batch
                ]
        else:
            outcomes = self._verify_in_workers(samples)
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

    def _verify_in_workers(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        with self._lock:
            if not self._num_callers:
                self._no_start = ""
            self._num_callers += 1
        self._worker.submit(len(samples))
        waiting: list[Future[VerificationOutcome]] = []
        try:
            for sample in samples:
                waiting.append(self._submit(sample))
            return [future.result() for future in waiting]
        finally:
            # After an error, such as Ctrl-C: what has not begun does not begin.
            num_cancelled = sum(future.cancel() for future in waiting) + len(samples) - len(waiting)
            self._worker.withdraw(num_cancelled)
            with self._lock:
                self._num_callers -= 1

    def _submit(self, sample: Sample) -> Future[VerificationOutcome]:
        assert self._threads is not None
        try:
            return self._threads.submit(self._verify_next, sample)
        except RuntimeError as error:  # the threads were shut down
            raise RuntimeError(CLOSED) from error

    def _verify_next(self, sample: Sample) -> VerificationOutcome:
        if self._is_closed:
            self._worker.withdraw(1)
            raise RuntimeError(CLOSED)
        # The slot is taken until the outcome is there: a worker's pipes are never used by two threads.
        slot = self._free_slots.get()
        self._worker.begin()
        try:
            return self._verify_one(slot, sample)
        finally:
            self._worker.end()
            self._free_slots.put(slot)

    def _verify_one(self, slot: int, sample: Sample) -> VerificationOutcome:
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
                    # A start may take minutes: other responses that wait do not try it again one by one.
                    self._no_start = detail
                continue
            try:
                reply = worker.ask(sample.json_fields(self._fields))
                return VerificationOutcome.from_message(reply)
            except WorkerTimeoutError as error:
                # Not retried: a deterministic verifier would run out of time again.
                self._discard_worker(slot)
                return VerificationOutcome(math.nan, VerificationStatus.TIMEOUT, str(error))
            except (WorkerDiedError, ValueError) as error:
                # A ValueError means that the reply is not an outcome.
                self._discard_worker(slot)
                detail = str(error)
        return VerificationOutcome(math.nan, VerificationStatus.ERROR, detail)

    def _start_worker(self, slot: int) -> WorkerProcess:
        worker = WorkerProcess("megatron_prime.rewards.worker", self._worker_arguments, self._timeout_s)
        try:
            worker.wait_until_ready()
            reply = worker.ask(FIELDS, STARTUP_TIMEOUT_S)
            if "fields" not in reply:
                raise WorkerDiedError(reply["unusable"])
        except BaseException:
            worker.kill()
            raise
        self._fields = reply["fields"]
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
