"""Load balancing over servers: the next group goes to the server with the fewest outstanding tokens."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.observability.activity import ENGINE, QUEUE, worker


@dataclass(slots=True)
class _Load:
    """The outstanding work of one server."""

    num_requests: int = 0
    num_tokens: int = 0
    is_up: bool = True


class Balancer:
    """Bounds the load of every server and distributes groups over them. For one event loop.

    A server gets new groups while it has fewer than `concurrency` requests in flight. A group is not split, so that its
    prompt is in one server's prefix cache; the limit may therefore be exceeded by one group.
    """

    def __init__(self, num_servers: int, concurrency: int) -> None:
        """Start with all servers up and idle. Raises ValueError unless both numbers are positive."""
        if num_servers < 1 or concurrency < 1:
            raise ValueError(f"num_servers = {num_servers} and concurrency = {concurrency} must be positive")
        self._loads = [_Load() for _ in range(num_servers)]
        self._concurrency = concurrency
        self.requests_taken = [0] * num_servers
        """Number of requests given to each server so far."""
        self._changed = asyncio.Condition()
        self._queue = worker("SGLang queue", QUEUE)
        self._workers = [worker(f"SGLang server {server}", ENGINE) for server in range(num_servers)]

    async def take(self, request_tokens: Sequence[int]) -> int:
        """Wait for a server with free capacity, give it requests of so many tokens each, and return its index."""
        count = len(request_tokens)
        self._queue.submit(count)
        async with self._changed:
            try:
                while (server := self._best()) is None:
                    await self._changed.wait()
            except asyncio.CancelledError:
                self._queue.withdraw(count)
                raise
            load = self._loads[server]
            load.num_requests += count
            self.requests_taken[server] += count
            load.num_tokens += sum(request_tokens)
            self._queue.begin(count)
            self._workers[server].begin(count)
            return server

    async def give_back(self, server: int, num_tokens: int) -> None:
        """Record the end of one request of num_tokens (as in `take`), whether it succeeded or failed."""
        async with self._changed:
            load = self._loads[server]
            load.num_requests -= 1
            load.num_tokens -= num_tokens
            assert load.num_requests >= 0 and load.num_tokens >= 0
            self._queue.end()
            self._workers[server].end()
            # One waiter is enough: one request's capacity has become free.
            self._changed.notify()

    async def set_up(self, server: int, is_up: bool) -> None:
        """Mark a server as up or down. A server that is down gets no requests."""
        async with self._changed:
            self._loads[server].is_up = is_up
            self._changed.notify_all()

    def is_up(self, server: int) -> bool:
        """Return whether the server gets requests."""
        return self._loads[server].is_up

    def _best(self) -> int | None:
        free = [
            index
            for index, load in enumerate(self._loads)
            if load.is_up and load.num_requests < self._concurrency
        ]
        # The index decides between equal loads, so that a run can be repeated.
        return min(free, key=lambda index: (self._loads[index].num_tokens, index), default=None)
