"""Environments in worker processes that can be killed, so that a deadline holds whatever an environment does.

    episode.step -> queue of its worker -> a thread per worker -> frames over pipes -> worker process

A worker hosts many episodes and answers one call at a time. If it has to be killed or dies, the episodes that it hosted
are repeated in another one, reset and all responses, when they are used again.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, Self

from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.observability.activity import ENVIRONMENT, worker
from megatron_prime.rollout.episode import EpisodeError
from megatron_prime.workers.process import WorkerDiedError, WorkerProcess, WorkerTimeoutError

_LOG = logging.getLogger(__name__)
WORKER_MODULE = "megatron_prime.environments.worker"
NUM_ATTEMPTS = 2
"""Processes that may die during one call of an episode. A process may die for an unrelated reason, such as the
machine's memory, so one retry."""
RESTART_PAUSE_S = 30.0
"""Seconds after two failed starts of workers in which calls fail at once: a start may take minutes."""
MAX_REPLY_BYTES = 16 << 20
"""Size of the longest reply: MAX_CHARACTERS of `replies`, as JSON writes those outside of ASCII."""
CLOSED = "the episode was closed"
FAILURES = ("error", "invalid", "timeout", "died", "repetition", "no_process")
"""Kinds of failures: the environment raised; returned no reply; ran out of time; its process died twice; a repeated
episode had other replies; no process starts."""
TOTALS = ("episodes", "calls", "call_s", "restarts", *(f"failed_{kind}" for kind in FAILURES))


class PooledEpisode:
    """The environment of one episode, in a worker process. Used by one task at a time."""

    def __init__(self, number: int, slot: "_Slot") -> None:
        self._slot = slot
        self.number = number
        self.generation = -1
        """Number of the worker, counted over restarts, that hosts the episode; -1 for none yet."""
        self.history: list[tuple[dict[str, Any], bytes]] = []
        """The calls so far with a digest of their replies, to be repeated in another worker."""
        self._waiting: Future[dict[str, Any]] | None = None
        self.is_closed = False

    async def reset(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Begin, and return the messages of the prompt. Raises EpisodeError."""
        return (await self._call({"call": "reset", "episode": self.number, "row": dict(row)}))["messages"]

    async def step(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a response, with the fields of `replies.reply_of`. Raises EpisodeError."""
        return await self._call({"call": "step", "episode": self.number, "response": dict(response)})

    def close(self) -> None:
        """Forget the environment; a call that waits fails. May be called twice, from any thread."""
        if not self.is_closed:
            self.is_closed = True
            self._slot.forget(self)
        waiting = self._waiting
        if waiting is not None:
            with contextlib.suppress(InvalidStateError):
                waiting.set_exception(EpisodeError(CLOSED))

    async def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.is_closed:
            raise EpisodeError(CLOSED)
        self._waiting = self._slot.submit(lambda: self._slot.call(self, request))
        try:
            return await asyncio.wrap_future(self._waiting)
        finally:
            self._waiting = None


class EnvironmentPool:
    """Runs the environments of episodes in `environment.num_workers` processes; close it, or use it in a `with`.

    Episodes may be used from any event loop, and none of their calls blocks it.
    """

    def __init__(self, config: EnvironmentConfig, code: CodeConfig | None = None) -> None:
        """Start the processes and wait until they are ready.

        Args:
            config: The environment.
            code: Limits of the sandbox of the tool `python`.

        Raises:
            ValueError: a process does not start, with the reason; or the environment has no valid tools.
        """
        options = config.model_dump(mode="json", include={"name", "settings", "tools", "timeout_s"})
        options["code"] = (code or CodeConfig()).model_dump(mode="json")
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        tally = _Tally(config.name)
        self._slots = [_Slot(config, json.dumps(options), tally) for _ in range(config.num_workers)]
        self._tally = tally
        starts = [slot.submit(slot.describe) for slot in self._slots]
        try:
            descriptions = [start.result() for start in starts]
        except BaseException as error:
            self.close()
            if not isinstance(error, EpisodeError):
                raise
            raise ValueError(f"environment.name = {config.name!r} does not start: {error}") from error
        self.tools: tuple[dict[str, Any], ...] = tuple(descriptions[0]["tools"])
        """Schemas of the tools, as chat templates take them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        return tuple(slot.pid for slot in self._slots if slot.pid is not None)

    @property
    def counts(self) -> dict[str, float]:
        """Totals since the start: episodes, calls, call_s (seconds of calls), restarts, and failed_KIND."""
        return self._tally.as_dict()

    def episode(self) -> PooledEpisode:
        """Return a new episode, in the worker with the fewest."""
        with self._lock:
            slot = min(self._slots, key=lambda each: len(each.episodes))
            episode = PooledEpisode(next(self._numbers), slot)
            slot.episodes.add(episode)
        self._tally.add("episodes")
        return episode

    def close(self) -> None:
        """End all processes at once; calls that wait fail. May be called twice."""
        for slot in self._slots:
            slot.close()
        for slot in self._slots:
            slot.wait()


class _Slot:
    """One worker process with its thread, and the episodes that it hosts."""

    def __init__(self, config: EnvironmentConfig, options: str, tally: "_Tally") -> None:
        self._config = config
        self._options = options
        self._tally = tally
        self._activity = worker(f"environment {config.name}", ENVIRONMENT)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="environment")
        self._worker: WorkerProcess | None = None
        self._generation = 0
        self._ended: deque[int] = deque()
        """Episodes of which the worker has not heard yet that they are over."""
        self._places: dict[str, str] = {}
        self._num_failed_starts = 0
        self._no_start_before = 0.0
        self._is_closed = False
        self.episodes: set[PooledEpisode] = set()

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None if it does not run."""
        process = self._worker
        return None if process is None else process.pid

    def submit(self, work: Callable[[], dict[str, Any]]) -> "Future[dict[str, Any]]":
        """Return the result of `work`, which the thread of the worker will do. Never blocks."""
        future: Future[dict[str, Any]] = Future()

        def run() -> None:
            # Cancelled, or closed by another thread.
            if future.done():
                self._activity.withdraw(1)
                return
            self._activity.begin()
            begin = time.perf_counter()
            try:
                result, error = work(), None
            except BaseException as raised:  # noqa: BLE001 - whoever waits gets it
                result, error = {}, raised
            finally:
                self._activity.end()
                self._tally.add("call_s", time.perf_counter() - begin)
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error) if error is not None else future.set_result(result)

        self._activity.submit(1)
        self._tally.add("calls")
        try:
            self._thread.submit(run)
        except RuntimeError:  # the pool was closed
            self._activity.withdraw(1)
            future.set_exception(EpisodeError(CLOSED))
        return future

    def describe(self) -> dict[str, Any]:
        """Start the worker, and return what its environment is."""
        try:
            self._start()
            description = self._ask({"call": "describe"})
        except (WorkerDiedError, WorkerTimeoutError, OSError) as error:
            self._discard()
            raise EpisodeError(str(error)) from error
        if "failed" in description:
            raise EpisodeError(f"{description['detail']}\n{description['traceback']}".rstrip())
        self._places = description["places"]
        return description

    def call(self, episode: PooledEpisode, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a call of an episode, in the thread of the worker.

        Raises:
            EpisodeError: the environment raised, returned no reply, ran out of time, or its process died twice.
        """
        what = self._places.get(request["call"], request["call"])
        detail = ""
        for _ in range(NUM_ATTEMPTS):
            if episode.is_closed:
                raise EpisodeError(CLOSED)
            try:
                if self._worker is None:
                    self._restart()
                if episode.generation != self._generation:
                    self._repeat(episode)
                reply = self._ask(request)
            except WorkerTimeoutError as error:
                # Not retried: a deterministic environment would run out of time again.
                self._discard()
                raise self._failure("timeout", f"{what} ran past {self._config.timeout_s:g} s") from error
            except (WorkerDiedError, OSError) as error:
                self._discard()
                detail = str(error)
                continue
            if "failed" in reply:
                raise self._failure(reply["failed"], reply["detail"], reply["traceback"])
            episode.history.append((request, _digest(reply)))
            if episode.is_closed:  # in the meantime, so that the worker may have heard of it before the call
                self._ended.append(episode.number)
            return reply
        raise self._failure("died", f"{detail}, in {what}")

    def forget(self, episode: PooledEpisode) -> None:
        """Free what the worker holds for an episode, with its next call."""
        self.episodes.discard(episode)
        self._ended.append(episode.number)

    def close(self) -> None:
        """Kill the worker, and fail all calls that wait."""
        self._is_closed = True
        self._thread.shutdown(wait=False)
        for episode in list(self.episodes):
            episode.close()
        process = self._worker
        if process is not None:
            # Its thread may be in a call, and sees the end of the process.
            process.interrupt()

    def wait(self) -> None:
        """Wait until the thread has ended, and then for the worker."""
        self._thread.shutdown(wait=True)
        self._discard()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._worker is not None
        # Other threads may add to it.
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        reply = self._worker.ask(request | {"ended": ended})
        if not isinstance(reply, dict):
            raise WorkerDiedError("the worker's output is no reply")
        return reply

    def _repeat(self, episode: PooledEpisode) -> None:
        """Repeat the calls of an episode in a new worker. Raises EpisodeError if a reply differs from the first one."""
        for turn, (request, reply) in enumerate(episode.history):
            if _digest(self._ask(request)) != reply:
                raise self._failure(
                    "repetition",
                    "its process had to be replaced, and the repeated "
                    + (f"reply to turn {turn - 1}" if turn else "reset")
                    + f" differs from the first one: {self._places.get(request['call'], '')} is not deterministic",
                )
        episode.generation = self._generation

    def _start(self) -> None:
        if self._is_closed:
            raise EpisodeError(CLOSED)
        process = WorkerProcess(WORKER_MODULE, [self._options], self._config.timeout_s, MAX_REPLY_BYTES)
        # Known before it is ready, so that `close` need not wait for an import that hangs.
        self._worker = process
        self._generation += 1
        self._ended.clear()
        process.wait_until_ready()

    def _restart(self) -> None:
        if time.monotonic() < self._no_start_before:
            raise self._failure("no_process", "no process of the environment can be started")
        try:
            self._start()
        except (WorkerDiedError, WorkerTimeoutError, OSError) as error:
            self._discard()
            self._num_failed_starts += 1
            if self._num_failed_starts >= NUM_ATTEMPTS:
                self._no_start_before = time.monotonic() + RESTART_PAUSE_S
            raise self._failure("no_process", f"a process does not start: {error}") from error
        self._num_failed_starts = 0
        self._tally.add("restarts")

    def _discard(self) -> None:
        """End the worker. The next call starts another one."""
        process, self._worker = self._worker, None
        if process is not None:
            process.kill()

    def _failure(self, kind: str, detail: str, traceback: str = "") -> EpisodeError:
        if not self._is_closed:
            self._tally.fail(kind, detail, traceback)
        return EpisodeError(detail if not self._is_closed else CLOSED)


def _digest(reply: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(reply, sort_keys=True).encode()).digest()


class _Tally:
    """Counts calls and failures, and logs the first failure of each kind whole, and later ones ever less often."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(dict.fromkeys(TOTALS, 0))

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a total. All threads of a pool call it."""
        with self._lock:
            self._counts[name] += amount  # type: ignore[assignment]

    def fail(self, kind: str, detail: str, traceback: str) -> None:
        """Count a failed episode."""
        with self._lock:
            self._counts[f"failed_{kind}"] += 1
            count = self._counts[f"failed_{kind}"]
        if count == 1:
            trace = f"\n{traceback}" if traceback else ""
            _LOG.warning("environment %s failed (%s): %s%s", self._name, kind, detail, trace)
        elif count in (10, 100) or count % 1000 == 0:
            _LOG.warning("environment %s: %d failures (%s), the latest: %s", self._name, count, kind, detail)

    def as_dict(self) -> dict[str, float]:
        """Return all totals by name."""
        with self._lock:
            return dict(self._counts)
