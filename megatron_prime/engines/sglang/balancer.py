"""Load balancing over servers: the next group goes to the server with the fewest outstanding tokens."""

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_prime.observability.activity import ENGINE, QUEUE, worker


@dataclass(slots=True)
class _Load:
    """The outstanding work of one server."""

    num_requests: int = 0
    num_tokens: int = 0
    is_up: bool = True


@dataclass(slots=True, order=True)
class _Waiting:
    """A group that waits for a server; the smallest one is next."""

    order: tuple[int, int]
    request_tokens: Sequence[int] = field(compare=False)
    server: "asyncio.Future[int]" = field(compare=False)


class Balancer:
    """Bounds the load of every server and distributes groups over them. For one event loop.

    A server gets new groups while it has fewer than `concurrency` requests in flight. A group is not split, so that its
    prompt is in one server's prefix cache; the limit may therefore be exceeded by one group. Groups begin in the order
    of the calls of `take`, those of the newest stream first: an evaluation does not wait for a stream that lasts.
    """

    def __init__(self, num_servers: int, concurrency: int) -> None:
        """Start with all servers up and idle. Raises ValueError unless both numbers are positive."""
        if num_servers < 1 or concurrency < 1:
            raise ValueError(f"num_servers = {num_servers} and concurrency = {concurrency} must be positive")
        self._loads = [_Load() for _ in range(num_servers)]
        self._concurrency = concurrency
        self.requests_taken = [0] * num_servers
        """Number of requests given to each server so far."""
        self._waiting: list[_Waiting] = []
        self._num_groups = 0
        self._is_held = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._queue = worker("SGLang queue", QUEUE)
        self._workers = [worker(f"SGLang server {server}", ENGINE) for server in range(num_servers)]

    async def take(self, request_tokens: Sequence[int], stream: int = 0) -> int:
        """Wait for a server with free capacity, give it requests of so many tokens each, and return its index.

        Args:
            request_tokens: most tokens of each request.
            stream: number of the stream that the group belongs to.
        """
        self._num_groups += 1
        waiting = _Waiting(
            (-stream, self._num_groups), request_tokens, asyncio.get_running_loop().create_future()
        )
        heapq.heappush(self._waiting, waiting)
        self._queue.submit(len(request_tokens))
        self._begin_groups()
        try:
            return await waiting.server
        except asyncio.CancelledError:
            if waiting.server.cancelled():
                self._queue.withdraw(len(request_tokens))
            else:
                for num_tokens in request_tokens:
                    self.give_back(waiting.server.result(), num_tokens)
            raise

    def give_back(self, server: int, num_tokens: int) -> None:
        """Record the end of one request of num_tokens (as in `take`), whether it succeeded or failed."""
        load = self._loads[server]
        load.num_requests -= 1
        load.num_tokens -= num_tokens
        assert load.num_requests >= 0 and load.num_tokens >= 0
        self._queue.end()
        self._workers[server].end()
        if not any(load.num_requests for load in self._loads):
            self._idle.set()
        self._begin_groups()

    def set_up(self, server: int, is_up: bool) -> None:
        """Mark a server as up or down. A server that is down gets no requests."""
        self._loads[server].is_up = is_up
        self._begin_groups()

    def is_up(self, server: int) -> bool:
        """Return whether the server gets requests."""
        return self._loads[server].is_up

    def hold(self) -> None:
        """Let no group begin until `release`."""
        self._is_held = True

    def release(self) -> None:
        """Let groups begin again."""
        self._is_held = False
        self._begin_groups()

    async def wait_until_idle(self) -> None:
        """Wait until no server works on a request."""
        await self._idle.wait()

    def _begin_groups(self) -> None:
        """Give the groups that wait to servers, as far as these have capacity."""
        while self._waiting and (server := self._best()) is not None:
            waiting = heapq.heappop(self._waiting)
            if waiting.server.done():  # The group was given up.
                continue
            load, count = self._loads[server], len(waiting.request_tokens)
            load.num_requests += count
            load.num_tokens += sum(waiting.request_tokens)
            self.requests_taken[server] += count
            self._idle.clear()
            self._queue.begin(count)
            self._workers[server].begin(count)
            waiting.server.set_result(server)

    def _best(self) -> int | None:
        free = [
            index
            for index, load in enumerate(self._loads)
            if load.is_up and not self._is_held and load.num_requests < self._concurrency
        ]
        # The index decides between equal loads, so that a run can be repeated.
        return min(free, key=lambda index: (self._loads[index].num_tokens, index), default=None)
