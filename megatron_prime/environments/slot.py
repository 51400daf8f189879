"""One worker process of a pool with the thread that talks to it, and the episodes that it hosts.

    episode.step -> queue of its worker -> a thread per worker -> lists of calls over pipes -> worker process

The calls that wait are sent together: an exchange with a process takes longer than a call of most environments. Each
call has its own deadline nevertheless. When a worker dies or has to be killed, the call in work is charged with it, and
the others of its list wait for the next worker.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from megatron_prime.config.tables.environment import EnvironmentConfig
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
MAX_CALLS = 256
"""Most calls that are sent together."""
CLOSED = "the episode was closed"
FAILURES = ("error", "invalid", "timeout", "died", "repetition", "no_process")
"""Kinds of failures: the environment raised; returned no reply; ran out of time; its process died twice; a repeated
episode had other replies; no process starts."""
TOTALS = ("episodes", "calls", "call_s", "restarts", *(f"failed_{kind}" for kind in FAILURES))
LOST = (WorkerDiedError, WorkerTimeoutError, OSError)
"""Errors after which a worker has to be replaced."""
Answer = dict[str, Any] | BaseException


@dataclass(eq=False, slots=True)
class Call:
    """A call of an episode, which a task waits for."""

    episode: "PooledEpisode"
    request: dict[str, Any]
    future: "asyncio.Future[dict[str, Any]]"
    num_deaths: int = 0
    """Workers that died during the call."""

    @property
    def is_wanted(self) -> bool:
        """Whether its task still waits for it."""
        return not self.episode.is_closed and not self.future.done()


class PooledEpisode:
    """The environment of one episode, in a worker process. Used by one task at a time."""

    def __init__(self, number: int, slot: "Slot") -> None:
        self._slot = slot
        self.number = number
        self.generation = -1
        """Number of the worker, counted over restarts, that hosts the episode; -1 for none yet."""
        self.history: list[tuple[dict[str, Any], bytes]] = []
        """The calls so far with a digest of their replies, to be repeated in another worker."""
        self._waiting: Call | None = None
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
            _deliver([(waiting, EpisodeError(CLOSED))])

    async def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.is_closed:
            raise EpisodeError(CLOSED)
        self._waiting = Call(self, request, asyncio.get_running_loop().create_future())
        try:
            self._slot.submit(self._waiting)
            return await self._waiting.future
        finally:
            self._waiting = None


class Slot:
    """A worker process, its thread, and the episodes that it hosts."""

    def __init__(self, config: EnvironmentConfig, options: str, tally: "Tally") -> None:
        """Start the thread, which starts the worker and describes its environment."""
        self._config = config
        self._options = options
        self._tally = tally
        self._activity = worker(f"environment {config.name}", ENVIRONMENT)
        self._worker: WorkerProcess | None = None
        self._generation = 0
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        """Calls, and None when the pool was closed."""
        self._most_calls = 1
        """Calls that are sent together: more while the worker answers all of them in a short time."""
        self._ended: deque[int] = deque()
        """Episodes of which the worker has not heard yet that they are over."""
        self._places: dict[str, str] = {}
        self._num_failed_starts = 0
        self._no_start_before = 0.0
        self._lock = threading.Lock()
        self._is_closed = False
        self.episodes: set[PooledEpisode] = set()
        self.description: Future[dict[str, Any]] = Future()
        """The description of the environment; an EpisodeError if the worker does not start."""
        self._thread = threading.Thread(target=self._run, name="environment", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None if it does not run."""
        process = self._worker
        return None if process is None else process.pid

    def submit(self, call: Call) -> None:
        """Let the thread of the worker answer a call. Never blocks. Raises EpisodeError if the pool was closed."""
        with self._lock:
            if self._is_closed:
                raise EpisodeError(CLOSED)
            self._activity.submit(1)
            self._calls.put(call)
        self._tally.add("calls")

    def forget(self, episode: PooledEpisode) -> None:
        """Free what the worker holds for an episode, with its next call."""
        self.episodes.discard(episode)
        self._ended.append(episode.number)

    def close(self) -> None:
        """Kill the worker, and fail all calls that wait."""
        with self._lock:
            self._is_closed = True
            self._calls.put(None)
        for episode in list(self.episodes):
            episode.close()
        process = self._worker
        if process is not None:
            # Its thread may be in a call, and sees the end of the process.
            process.interrupt()

    def wait(self) -> None:
        """Wait until the thread has ended, and then for the worker."""
        self._thread.join()
        self._discard()

    def _run(self) -> None:
        """Answer calls until the pool is closed: the program of the thread."""
        try:
            self.description.set_result(self._describe())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self.description.set_exception(error)
        waiting: deque[Call] = deque()
        while self._receive(waiting):
            calls = [waiting.popleft() for _ in range(min(len(waiting), self._most_calls))]
            wanted = [call for call in calls if call.is_wanted]
            self._activity.withdraw(len(calls) - len(wanted))
            if wanted:
                waiting.extendleft(reversed(self._answer_some(wanted)))
        self._activity.withdraw(len(waiting))
        _deliver((call, EpisodeError(CLOSED)) for call in waiting)

    def _receive(self, waiting: deque[Call]) -> bool:
        """Append the calls that have come, at least one if none waits. Return whether the pool is open."""
        is_open = True
        while not (self._calls.empty() and (waiting or not is_open)):
            call = self._calls.get()
            if call is None:
                is_open = False
            else:
                waiting.append(call)
        return is_open

    def _answer_some(self, calls: Sequence[Call]) -> list[Call]:
        """Answer the first of these calls, and return those that have to wait."""
        self._activity.begin()  # of the calls that are sent together, one is in work at a time
        begin = time.perf_counter()
        try:
            answers = self._ask_worker(calls)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            answers = [(call, error) for call in calls]
        self._tally.add("call_s", time.perf_counter() - begin)
        self._activity.begin(len(answers) - 1)  # without an answer, the one that began waits again
        self._activity.end(len(answers))
        _deliver(answers)
        answered = {id(call) for call, _ in answers}
        return [call for call in calls if id(call) not in answered]

    def _ask_worker(self, calls: Sequence[Call]) -> list[tuple[Call, Answer]]:
        """Return the answers to the first calls, or an error for the one that caused it; none if all have to wait."""
        for call in calls:
            try:
                self._prepare(call.episode)
            except EpisodeError as error:
                return [(call, error)]
            except LOST as error:
                return self._charge(call, error)
        process = self._worker
        assert process is not None
        try:
            replies = self._ask([call.request for call in calls])
        except LOST as error:
            return self._charge(calls[process.num_answered], error)
        if len(replies) < len(calls):
            self._most_calls = len(replies)
        elif len(calls) == self._most_calls:
            self._most_calls = min(2 * self._most_calls, MAX_CALLS)
        return [(call, self._answer_of(call, reply)) for call, reply in zip(calls, replies, strict=False)]

    def _prepare(self, episode: PooledEpisode) -> None:
        """Make a worker host an episode. Raises EpisodeError or one of LOST."""
        if self._worker is None:
            self._restart()
        if episode.generation != self._generation:
            self._repeat(episode)

    def _charge(self, call: Call, error: Exception) -> list[tuple[Call, Answer]]:
        """End the worker, which failed in this call, and return the error that the call gets, if it gets one."""
        self._discard()
        self._most_calls = 1
        what = self._places.get(call.request["call"], call.request["call"])
        if isinstance(error, WorkerTimeoutError):
            # Not retried: a deterministic environment would run out of time again.
            return [(call, self._failure("timeout", f"{what} ran past {self._config.timeout_s:g} s"))]
        call.num_deaths += 1
        if call.num_deaths < NUM_ATTEMPTS:
            return []
        return [(call, self._failure("died", f"{error}, in {what}"))]

    def _answer_of(self, call: Call, reply: dict[str, Any]) -> Answer:
        if "failed" in reply:
            return self._failure(reply["failed"], reply["detail"], reply["traceback"])
        episode = call.episode
        episode.history.append((call.request, _digest(reply)))
        if episode.is_closed:  # in the meantime, so that the worker may have heard of it before the call
            self._ended.append(episode.number)
        return reply

    def _describe(self) -> dict[str, Any]:
        """Start the worker, and return what its environment is."""
        try:
            self._start()
            (description,) = self._ask([{"call": "describe"}])
        except LOST as error:
            self._discard()
            raise EpisodeError(str(error)) from error
        if "failed" in description:
            raise EpisodeError(f"{description['detail']}\n{description['traceback']}".rstrip())
        self._places = description["places"]
        return description

    def _ask(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the replies to the first of the requests, at least to one. Raises one of LOST."""
        assert self._worker is not None
        # Other threads may add to it.
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        replies = self._worker.ask_list([requests[0] | {"ended": ended}, *requests[1:]])
        if not all(isinstance(reply, dict) for reply in replies):
            raise WorkerDiedError("the worker's output is no reply")
        return replies

    def _repeat(self, episode: PooledEpisode) -> None:
        """Repeat the calls of an episode in a new worker. Raises EpisodeError if a reply differs from the first one."""
        turn = 0
        while turn < len(episode.history):
            for reply in self._ask([request for request, _ in episode.history[turn:]]):
                request, first = episode.history[turn]
                if _digest(reply) != first:
                    raise self._failure(
                        "repetition",
                        "its process had to be replaced, and the repeated "
                        + (f"reply to turn {turn - 1}" if turn else "reset")
                        + f" differs from the first one: {self._places.get(request['call'], '')} is not deterministic",
                    )
                turn += 1
        episode.generation = self._generation

    def _start(self) -> None:
        if self._is_closed:
            raise EpisodeError(CLOSED)
        process = WorkerProcess(WORKER_MODULE, [self._options], self._config.timeout_s, MAX_REPLY_BYTES)
        # Known before it is ready, so that `close` need not wait for an import that hangs.
        self._worker = process
        if self._is_closed:
            process.interrupt()
        self._generation += 1
        self._ended.clear()
        process.wait_until_ready()

    def _restart(self) -> None:
        if time.monotonic() < self._no_start_before:
            raise self._failure("no_process", "no process of the environment can be started")
        try:
            self._start()
        except LOST as error:
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


def _deliver(answers: Iterable[tuple[Call, Answer]]) -> None:
    """Give calls their answers, from any thread: all of a loop at once, which wakes it once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Call, Answer]]] = {}
    for call, answer in answers:
        by_loop.setdefault(call.future.get_loop(), []).append((call, answer))
    for loop, its_answers in by_loop.items():
        with contextlib.suppress(RuntimeError):  # it was closed, so that nobody waits
            loop.call_soon_threadsafe(_resolve, its_answers)


def _resolve(answers: Iterable[tuple[Call, Answer]]) -> None:
    for call, answer in answers:
        if call.future.done():
            continue
        if isinstance(answer, BaseException):
            call.future.set_exception(answer)
        else:
            call.future.set_result(answer)


def _digest(reply: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(reply, sort_keys=True).encode()).digest()


class Tally:
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
