"""Simulated SGLang servers and verifiers.

All running responses of a server get one token per decoding step. A step that decodes n responses whose contexts have c
tokens together takes

    base_s + n * per_response_s + c * per_context_token_s

seconds: the weights are read once per step, and the keys and values of every context. Between two events n is constant
and c grows by n per step, so that a server's progress is calculated in closed form and not step by step.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.overlap.clock import Clock


@dataclass(frozen=True)
class DecodeSpeed:
    """The seconds of a decoding step, as above."""

    base_s: float
    per_response_s: float = 0.0
    per_context_token_s: float = 0.0
    prefill_s_per_token: float = 0.0
    """Seconds in which the server computes one token of a context anew, and decodes nothing."""

    def seconds(self, steps: float, num_running: int, context: float) -> float:
        """Return the time of a number of steps, the sum of which over the growing context is an integral here."""
        first = self.base_s + num_running * self.per_response_s + context * self.per_context_token_s
        return steps * first + num_running * self.per_context_token_s * steps**2 / 2

    def steps(self, seconds: float, num_running: int, context: float) -> float:
        """Return the number of steps in that time: the inverse of `seconds`."""
        first = self.base_s + num_running * self.per_response_s + context * self.per_context_token_s
        growth = num_running * self.per_context_token_s
        # The positive root of growth / 2 * steps^2 + first * steps = seconds, in the form that is exact for growth = 0.
        return 2 * seconds / (first + math.sqrt(first**2 + 2 * growth * seconds))


@dataclass
class Response:
    """A response that is being sampled."""

    prompt_tokens: int
    length: int
    done: Callable[[], None]
    """Called when it has ended."""
    is_aborted: bool = False


class Server:
    """A server with a number of places. Responses run until they end; the caller must not exceed the places."""

    def __init__(self, clock: Clock, speed: DecodeSpeed, num_places: int) -> None:
        self._clock = clock
        self._speed = speed
        self._num_places = num_places
        self._running: list[tuple[float, int, Response]] = []
        self._num_started = 0
        self._steps = 0.0
        self._context = 0.0
        self._updated = 0.0
        self._stalled_until = 0.0
        self._plan = 0
        self.busy_s = 0.0
        """Seconds with at least one response, so far."""
        self.num_tokens = 0.0
        """Tokens sampled so far, those of aborted responses included."""

    @property
    def num_running(self) -> int:
        """Number of responses in flight."""
        return len(self._running)

    @property
    def num_free(self) -> int:
        """Number of responses that could start now."""
        return self._num_places - len(self._running)

    def start(self, responses: Sequence[Response]) -> None:
        """Start responses to one prompt, whose keys and values are computed once."""
        assert len(responses) <= self.num_free
        self.advance()
        for response in responses:
            heapq.heappush(self._running, (self._steps + response.length, self._num_started, response))
            self._num_started += 1
            self._context += response.prompt_tokens
        self._stall(responses[0].prompt_tokens * self._speed.prefill_s_per_token)
        self._replan()

    def abort(self, responses: Sequence[Response]) -> None:
        """End responses at once; `done` is not called."""
        self.advance()
        for response in responses:
            response.is_aborted = True
        for end, _, response in self._running:
            if response.is_aborted:
                self._context -= response.prompt_tokens + response.length - (end - self._steps)
        self._running = [each for each in self._running if not each[2].is_aborted]
        heapq.heapify(self._running)
        self._replan()

    def update_weights(self, seconds: float, recomputes: bool) -> None:
        """Stop for an update of the weights; `recomputes` the keys and values of all contexts behind it."""
        self.advance()
        again = self._context * self._speed.prefill_s_per_token if recomputes else 0.0
        self._stall(seconds + again)
        self._replan()

    def advance(self) -> None:
        """Bring the counts up to the present."""
        now, num = self._clock.now, len(self._running)
        since = max(self._updated, min(now, self._stalled_until))
        if num:
            self.busy_s += now - self._updated
            steps = self._speed.steps(now - since, num, self._context)
            # Rounding must not carry a server past its next end.
            steps = min(steps, self._running[0][0] - self._steps)
            self._steps += steps
            self._context += steps * num
            self.num_tokens += steps * num
        self._updated = now

    def _stall(self, seconds: float) -> None:
        self._stalled_until = max(self._stalled_until, self._clock.now) + seconds

    def _replan(self) -> None:
        """Ask for a call at the next end."""
        self._plan += 1
        if not self._running:
            return
        plan = self._plan
        steps = self._running[0][0] - self._steps
        wait = max(0.0, self._stalled_until - self._clock.now)
        seconds = self._speed.seconds(steps, len(self._running), self._context)
        self._clock.call(wait + seconds, lambda: self._end_next(plan))

    def _end_next(self, plan: int) -> None:
        if plan != self._plan:
            return
        self.advance()
        end, _, response = heapq.heappop(self._running)
        # What rounding left of the last step.
        self.num_tokens += (end - self._steps) * (len(self._running) + 1)
        self._context += (end - self._steps) * (len(self._running) + 1)
        self._steps = end
        self._context -= response.prompt_tokens + response.length
        self._replan()
        response.done()


class Verifiers:
    """Workers that verify one response each, in the order of arrival."""

    def __init__(self, clock: Clock, num_workers: int) -> None:
        self._clock = clock
        self._num_free = num_workers
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    def verify(self, seconds: float, done: Callable[[], None]) -> None:
        """Verify a response as soon as a worker is free, and call `done`."""
        self._waiting.append((seconds, done))
        self._begin()

    def _begin(self) -> None:
        while self._num_free and self._waiting:
            seconds, done = self._waiting.popleft()
            self._num_free -= 1
            self._clock.call(seconds, lambda done=done: self._end(done))

    def _end(self, done: Callable[[], None]) -> None:
        self._num_free += 1
        done()
        self._begin()
