"""Which server takes the next group: the one with the fewest outstanding tokens that has room."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Load:
    """What one server has to do."""

    num_requests: int = 0
    num_tokens: int = 0
    is_up: bool = True
    num_taken: int = 0
    """Requests ever taken, for tests and logs."""


class Balancer:
    """Bounds and spreads the load over servers. For one event loop.

    A server takes new groups while fewer than `concurrency` requests of it are in flight; a group may overshoot by its
    size, since it stays together for the sake of the prefix cache.
    """

    def __init__(self, num_servers: int, concurrency: int) -> None:
        """All servers are up and idle. Raises ValueError unless both are positive."""
        if num_servers < 1 or concurrency < 1:
            raise ValueError(f"num_servers = {num_servers} and concurrency = {concurrency} must be positive")
        self._loads = [_Load() for _ in range(num_servers)]
        self._concurrency = concurrency
        self._changed = asyncio.Condition()

    async def take(self, request_tokens: Sequence[int]) -> int:
        """Wait for a server with room and give it requests of so many tokens each. Returns its index."""
        async with self._changed:
            while (server := self._best()) is None:
                await self._changed.wait()
            load = self._loads[server]
            load.num_requests += len(request_tokens)
            load.num_taken += len(request_tokens)
            load.num_tokens += sum(request_tokens)
            return server

    async def give_back(self, server: int, num_tokens: int) -> None:
        """One request of num_tokens (as taken) has ended on `server`, well or not."""
        async with self._changed:
            load = self._loads[server]
            load.num_requests -= 1
            load.num_tokens -= num_tokens
            assert load.num_requests >= 0 and load.num_tokens >= 0
            self._changed.notify()

    async def set_up(self, server: int, is_up: bool) -> None:
        """A server that is down gets no requests."""
        async with self._changed:
            self._loads[server].is_up = is_up
            self._changed.notify_all()

    def is_up(self, server: int) -> bool:
        """Whether the server takes requests."""
        return self._loads[server].is_up

    def requests_taken(self) -> list[int]:
        """Requests that each server was ever given."""
        return [load.num_taken for load in self._loads]

    def _best(self) -> int | None:
        free = [
            index
            for index, load in enumerate(self._loads)
            if load.is_up and load.num_requests < self._concurrency
        ]
        return min(free, key=lambda index: (self._loads[index].num_tokens, index), default=None)
