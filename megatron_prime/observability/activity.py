"""The work of engines, environments and verifiers: queues, busy times, and the recording of a step for its timeline.

Every worker of a process has one `Worker` here: the embedded engine, each SGLang server, the queue of the engine, the
environments, and the verifiers. Like the heartbeat, the records are global: what works and what shows the work share no
other object. Recording a change costs about a microsecond.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")

ENGINE = "engine"
ENVIRONMENT = "environment"
VERIFIER = "verifier"
QUEUE = "queue"
"""Kinds of workers: what samples, what replies to it, what verifies, and requests that wait for any server."""
KINDS = (ENGINE, ENVIRONMENT, VERIFIER, QUEUE)
TIMED = (ENGINE, ENVIRONMENT, VERIFIER)
"""Kinds whose idle times are metrics."""
MAX_CHANGES = 500_000
"""Largest number of changes in a recording, which bounds its memory to about 100 MB."""


@dataclass(frozen=True, slots=True)
class Change:
    """The state of a worker from a moment on."""

    at_ns: int
    """Time since the epoch in nanoseconds."""
    worker: str
    kind: str
    pending: int
    running: int


@dataclass(frozen=True, slots=True)
class Span:
    """A phase that has ended."""

    name: str
    begin_ns: int
    end_ns: int


@dataclass
class Recording:
    """All that happened between two moments."""

    begin_ns: int
    end_ns: int = 0
    spans: list[Span] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """The time of a worker and of its items, in seconds."""

    busy_s: float = 0.0
    """Time with at least one item in work."""
    running_s: float = 0.0
    """Time in work, summed over the items."""
    pending_s: float = 0.0
    """Time of waiting, summed over the items."""


class Worker:
    """The queue and the busy time of something that works on items. Threads may share it."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.pending = 0
        """Items that wait."""
        self.running = 0
        """Items in work."""
        self.completed = 0
        """Items completed since the queue was last empty."""
        self._used = Usage()
        self._changed_at = time.perf_counter()

    @property
    def usage(self) -> "Usage":
        """The time that was worked and waited so far."""
        with _lock:
            return self._used_until(time.perf_counter())

    def submit(self, count: int) -> None:
        """Record new items."""
        with _lock:
            if not self.pending and not self.running:
                self.completed = 0
            self._set(self.pending + count, self.running)

    def begin(self, count: int = 1) -> None:
        """Record that waiting items are worked on."""
        with _lock:
            self._set(max(0, self.pending - count), self.running + count)

    def end(self, count: int = 1) -> None:
        """Record that items have left, completed or not."""
        with _lock:
            self.completed += count
            self._set(self.pending, max(0, self.running - count))

    def withdraw(self, count: int) -> None:
        """Record that waiting items will not be worked on, as after an error."""
        with _lock:
            self._set(max(0, self.pending - count), self.running)

    def each(self, batches: Sequence[Sequence[Item]]) -> Iterator[Sequence[Item]]:
        """Yield batches of items one after the other, and record that they wait and are worked on."""
        waiting = sum(map(len, batches))
        self.submit(waiting)
        try:
            for items in batches:
                waiting -= len(items)
                self.begin(len(items))
                try:
                    yield items
                finally:
                    self.end(len(items))
        finally:
            self.withdraw(waiting)

    def _used_until(self, now: float) -> "Usage":
        seconds = now - self._changed_at
        return Usage(
            self._used.busy_s + (seconds if self.running else 0.0),
            self._used.running_s + seconds * self.running,
            self._used.pending_s + seconds * self.pending,
        )

    def _set(self, pending: int, running: int) -> None:
        now = time.perf_counter()
        self._used, self._changed_at = self._used_until(now), now
        self.pending, self.running = pending, running
        if _recording is not None and len(_recording.changes) < MAX_CHANGES:
            _recording.changes.append(Change(time.time_ns(), self.name, self.kind, pending, running))


_lock = threading.Lock()
_workers: dict[str, Worker] = {}
_recording: Recording | None = None


def worker(name: str, kind: str) -> Worker:
    """Return the worker of this name, which is created on the first call."""
    with _lock:
        return _workers.setdefault(name, Worker(name, kind))


def workers(kind: str) -> list[Worker]:
    """Return the workers of a kind in the order of their creation."""
    with _lock:
        return [each for each in _workers.values() if each.kind == kind]


def recording() -> Recording | None:
    """Return the recording in progress, or None."""
    return _recording


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record phases and changes for the duration of a block, beginning with the state of each worker.

    Recordings are not nested.
    """
    global _recording
    assert _recording is None, "a recording is in progress"
    now = time.time_ns()
    with _lock:
        changes = [
            Change(now, each.name, each.kind, each.pending, each.running) for each in _workers.values()
        ]
        _recording = record = Recording(now, changes=changes)
    try:
        yield record
    finally:
        _recording = None
        record.end_ns = time.time_ns()


class StepActivity:
    """The work of this process's engines, environments and verifiers from the construction on."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._before = {each.name: each.usage for kind in KINDS for each in workers(kind)}

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the time since the construction, for kinds that have workers.

        They are `time/engine_idle_fraction`, the mean over servers, and those of the other kinds in TIMED; and averaged
        over the time the numbers of responses that engines sample, of requests that wait for one, and of responses that
        wait for a verifier.
        """
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        result = {}
        for kind in TIMED:
            idle = [1 - min(1.0, used.busy_s / seconds) for used in self._used(kind)]
            if idle:
                result[f"time/{kind}_idle_fraction"] = sum(idle) / len(idle)
        if workers(ENGINE):
            queues = [*self._used(QUEUE), *self._used(ENGINE)]
            result["throughput/responses_in_flight"] = sum(u.running_s for u in self._used(ENGINE)) / seconds
            result["throughput/requests_waiting"] = sum(u.pending_s for u in queues) / seconds
        if workers(VERIFIER):
            result["throughput/verifier_queue"] = sum(u.pending_s for u in self._used(VERIFIER)) / seconds
        return result

    def _used(self, kind: str) -> list[Usage]:
        """Return what each worker of a kind has done since the construction."""
        found = []
        for each in workers(kind):
            before, now = self._before.get(each.name, Usage()), each.usage
            found.append(
                Usage(
                    now.busy_s - before.busy_s,
                    now.running_s - before.running_s,
                    now.pending_s - before.pending_s,
                )
            )
        return found
