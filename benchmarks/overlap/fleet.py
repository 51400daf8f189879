"""Groups of responses on simulated servers and verifiers, as a collector sees them."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.overlap.clock import Clock, Event
from benchmarks.overlap.servers import Response, Server, Verifiers


@dataclass(frozen=True)
class Group:
    """All responses to a prompt: how long they become, how long their verification takes, and what the filter says."""

    prompt_tokens: int
    lengths: tuple[int, ...]
    verify_s: tuple[float, ...]
    is_kept: bool

    @property
    def num_tokens(self) -> int:
        """Tokens that the trainer computes."""
        return len(self.lengths) * self.prompt_tokens + sum(self.lengths)


class Flight:
    """A group on its way from its launch to its verdict."""

    def __init__(self, group: Group, prompt_index: int, version: int) -> None:
        self.group = group
        self.prompt_index = prompt_index
        self.version = version
        """Policy version at the launch."""
        self.last_version = version
        """Policy version of the last token."""
        self.sampled = Event()
        self.decided = Event()
        """All responses are verified."""
        self.server: Server | None = None
        """None while the group waits for a place, and after its end."""
        self.responses: list[Response] = []
        self.num_verified = 0


class Fleet:
    """Servers, and the groups that wait for places on them in the order of their launch."""

    def __init__(self, clock: Clock, servers: Sequence[Server], verifiers: Verifiers) -> None:
        self.clock = clock
        self.servers = servers
        self.verifiers = verifiers
        self.version = 0
        """Policy version that the servers have."""
        self._waiting: deque[Flight] = deque()
        self._flying: set[Flight] = set()
        self.on_end: Callable[[], None] = lambda: None
        """Called when a response has ended."""

    @property
    def is_empty(self) -> bool:
        """True if no response is in flight and no group waits."""
        return not self._waiting and not self._flying

    def has_places(self, num_responses: int) -> bool:
        """Return whether a group of that size could start now."""
        return not self._waiting and any(server.num_free >= num_responses for server in self.servers)

    @property
    def busy_s(self) -> float:
        """Mean over the servers of the seconds with at least one response, so far."""
        return sum(server.busy_s for server in self._current()) / len(self.servers)

    @property
    def num_tokens(self) -> float:
        """Tokens sampled so far."""
        return sum(server.num_tokens for server in self._current())

    def launch(self, group: Group, prompt_index: int, verifies_at_once: bool = True) -> Flight:
        """Sample a group when it has places; each response is verified when it has ended, or later by `verify`."""
        flight = Flight(group, prompt_index, self.version)
        left = len(group.lengths)

        def ended(place: int) -> None:
            nonlocal left
            left -= 1
            flight.last_version = self.version
            if left == 0:
                flight.server = None
                self._flying.discard(flight)
                flight.sampled.happen()
            if verifies_at_once:
                self._verify(flight, [place])
            self._start_waiting()
            self.on_end()

        flight.responses = [
            Response(group.prompt_tokens, length, lambda place=place: ended(place))
            for place, length in enumerate(group.lengths)
        ]
        self._waiting.append(flight)
        self._start_waiting()
        return flight

    def verify(self, flight: Flight) -> None:
        """Verify all responses of a group that was launched without."""
        self._verify(flight, range(len(flight.group.lengths)))

    def abort(self, flights: Sequence[Flight]) -> None:
        """End groups that are not sampled yet; what has ended is verified all the same."""
        for flight in flights:
            if flight.server is not None:
                flight.server.abort(flight.responses)
                flight.server = None
            self._flying.discard(flight)
        gone = set(flights)
        self._waiting = deque(flight for flight in self._waiting if flight not in gone)
        self._start_waiting()

    def update_weights(self, version: int, seconds: float, recomputes: bool = False) -> None:
        """Give all servers another version; they sample nothing in that time."""
        self.version = version
        for server in self.servers:
            server.update_weights(seconds, recomputes)

    def _verify(self, flight: Flight, places: Sequence[int]) -> None:
        for place in places:
            self.verifiers.verify(flight.group.verify_s[place], lambda: self._verified(flight))

    def _verified(self, flight: Flight) -> None:
        flight.num_verified += 1
        if flight.num_verified == len(flight.group.lengths):
            flight.decided.happen()

    def _start_waiting(self) -> None:
        while self._waiting:
            server = max(self.servers, key=lambda each: each.num_free)
            if server.num_free < len(self._waiting[0].responses):
                return
            flight = self._waiting.popleft()
            flight.server = server
            self._flying.add(flight)
            server.start(flight.responses)

    def _current(self) -> Sequence[Server]:
        for server in self.servers:
            server.advance()
        return self.servers
