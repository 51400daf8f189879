"""The schedules of sampling and training, as processes on simulated servers and a simulated trainer.

- `rounds`: sample as many prompts as are missing, verify all of them, and again until the batch is full; then train
- `streaming`: replace each rejected group at once; verify while sampling; then train
- `one_step_off`: train on a batch while the next one is collected with the weights of the step before
- `continuous`: sample without a break, with weights that are up to k steps old when a group is used
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.overlap.clock import Clock, Event, Process
from benchmarks.overlap.fleet import Fleet, Flight, Group


@dataclass(frozen=True)
class Trainer:
    """The seconds of a step without sampling: a constant part and one for each token of the batch."""

    base_s: float
    per_token_s: float
    push_s: float = 0.0
    """Seconds of a weight sync, in which neither side works."""

    def seconds(self, batch: list[Flight]) -> float:
        """Return the seconds of a step on a batch."""
        return self.base_s + self.per_token_s * sum(flight.group.num_tokens for flight in batch)


@dataclass(frozen=True)
class Step:
    """A step of a simulated run."""

    end: float
    """Moment at which its training has ended."""
    train_s: float
    num_tokens: int
    """Tokens of the responses trained on."""
    staleness: tuple[int, ...]
    """The step's index minus the version at the launch, for each group."""
    busy_s: float
    """Busy seconds of a server up to the step's end."""
    sampled: float
    """Tokens sampled up to the step's end."""


@dataclass
class Site:
    """The servers, the trainer and the prompts that a schedule works with, and the steps it has done."""

    clock: Clock
    fleet: Fleet
    trainer: Trainer
    draw: Callable[[int, int], Group]
    """Returns the group of a prompt (by its position in the stream) for a version of the policy."""
    prompts_per_step: int
    group_size: int
    steps: list[Step] = field(default_factory=list)
    position: int = 0
    """Prompts taken from the stream and decided."""
    keep_rate: float = 1.0
    """Smoothed fraction of groups that the filter keeps."""

    def train(self, batch: list[Flight]) -> Process:
        """Train on a batch."""
        seconds = self.trainer.seconds(batch)
        yield seconds
        step = len(self.steps)
        self.steps.append(
            Step(
                self.clock.now,
                seconds,
                sum(sum(flight.group.lengths) for flight in batch),
                tuple(step - flight.version for flight in batch),
                self.fleet.busy_s,
                self.fleet.num_tokens,
            )
        )

    def push(self, version: int) -> Process:
        """Give the weights to servers without a response."""
        self.fleet.update_weights(version, self.trainer.push_s)
        yield self.trainer.push_s

    def decided(self, flights: list[Flight]) -> None:
        """Take note of the groups of a step."""
        self.position += len(flights)
        kept = sum(flight.group.is_kept for flight in flights)
        rate = (kept + 1) / (len(flights) + 1)
        self.keep_rate = 0.8 * self.keep_rate + 0.2 * rate


def rounds(site: Site, num_steps: int, max_rounds: int = 4) -> Process:
    """Collect each batch in rounds, then train on it."""
    for step in range(num_steps):
        yield from site.push(step)
        kept: list[Flight] = []
        taken: list[Flight] = []
        for _ in range(max_rounds):
            missing = site.prompts_per_step - len(kept)
            rate = 1.0 if not taken else (len(kept) + 1) / (len(taken) + 1)
            size = min(math.ceil(missing / rate), 2 * site.prompts_per_step)
            first = site.position + len(taken)
            flights = [
                site.fleet.launch(site.draw(index, step), index, verifies_at_once=False)
                for index in range(first, first + size)
            ]
            for flight in flights:
                yield flight.sampled
            for flight in flights:
                site.fleet.verify(flight)
            for flight in flights:
                yield flight.decided
            taken += flights
            kept += [flight for flight in flights if flight.group.is_kept]
            if len(kept) >= site.prompts_per_step:
                break
        site.decided(taken)
        yield from site.train(kept[: site.prompts_per_step])


def collect(site: Site, version: int) -> Process:
    """Return the first groups that the filter keeps, in the order of their prompts."""
    flights: list[Flight] = []
    progress = Event()
    num_decided = num_kept = 0

    def launch() -> None:
        index = site.position + len(flights)
        flight = site.fleet.launch(site.draw(index, version), index)
        flights.append(flight)
        flight.decided.then(lambda: note(flight))

    def note(flight: Flight) -> None:
        nonlocal num_decided, num_kept
        num_decided += 1
        num_kept += flight.group.is_kept
        progress.happen()

    batch: list[Flight] = []
    prefix = 0
    while len(batch) < site.prompts_per_step:
        wanted = math.ceil((site.prompts_per_step - num_kept) / site.keep_rate)
        while len(flights) - num_decided < wanted:
            launch()
        yield progress
        progress = Event()
        while prefix < len(flights) and len(batch) < site.prompts_per_step:
            if not flights[prefix].decided.has_happened:
                break
            batch += [flights[prefix]] * flights[prefix].group.is_kept
            prefix += 1
    # What lies behind the last group goes back to the stream.
    site.fleet.abort([flight for flight in flights[prefix:] if not flight.sampled.has_happened])
    site.decided(flights[:prefix])
    return batch


def streaming(site: Site, num_steps: int) -> Process:
    """Collect each batch as a stream, then train on it."""
    for step in range(num_steps):
        yield from site.push(step)
        batch = yield from collect(site, step)
        yield from site.train(batch)


def one_step_off(site: Site, num_steps: int) -> Process:
    """Train on each batch while the next one is collected with weights from before the step."""
    batch = yield from collect(site, 0)
    for step in range(num_steps):
        if step:
            yield from site.push(step)
        is_last = step == num_steps - 1
        collection = None if is_last else site.clock.start(collect(site, step))
        yield from site.train(batch)
        if collection is not None:
            yield collection
            batch = collection.value


def continuous(site: Site, num_steps: int, max_staleness: int, partial: str) -> Process:
    """Train on groups in the order of their prompts; a launched one waits for at most `max_staleness` further syncs.

    With partial = "wait" a sync lets running responses end first; with "continue" they go on under the new weights,
    which compute the keys and values of their contexts anew.
    """
    stream = _Stream(site, max_staleness)
    for step in range(num_steps):
        if step:
            yield from stream.push(step, partial)
        batch = yield from stream.take()
        yield from site.train(batch)
    stream.is_open = False


class _Stream:
    """Groups in flight, in the order of their prompts."""

    def __init__(self, site: Site, max_staleness: int) -> None:
        self._site = site
        self._max_staleness = max_staleness
        self._flights: deque[Flight] = deque()
        self._num_launched = 0
        self._num_rejected = 0
        self._progress = Event()
        self._response_ended = Event()
        self.is_open = True
        site.fleet.on_end = self._ended
        self._fill()

    def take(self) -> Process:
        """Wait for a batch, and return it."""
        batch: list[Flight] = []
        while len(batch) < self._site.prompts_per_step:
            while self._flights and self._flights[0].decided.has_happened:
                flight = self._flights.popleft()
                batch += [flight] * flight.group.is_kept
                if len(batch) == self._site.prompts_per_step:
                    return batch
            yield self._progress
            self._progress = Event()
        return batch

    def push(self, version: int, partial: str) -> Process:
        """Sync the weights."""
        fleet, seconds = self._site.fleet, self._site.trainer.push_s
        if partial == "wait":
            self.is_open = False
            while not fleet.is_empty:
                yield self._response_ended
            self.is_open = True
        fleet.update_weights(version, seconds, recomputes=partial == "continue")
        yield seconds
        self._fill()

    def _fill(self) -> None:
        """Launch what cannot become too old: a group of version v is in batch v + max_staleness at the latest."""
        site = self._site
        limit = (site.fleet.version + self._max_staleness + 1) * site.prompts_per_step
        while self.is_open and self._num_launched - self._num_rejected < limit:
            # A group that would wait for a place is launched later, by then with newer weights.
            if not site.fleet.has_places(site.group_size):
                return
            group = site.draw(self._num_launched, site.fleet.version)
            flight = site.fleet.launch(group, self._num_launched)
            self._num_launched += 1
            self._flights.append(flight)
            flight.decided.then(lambda flight=flight: self._note(flight))

    def _ended(self) -> None:
        ended, self._response_ended = self._response_ended, Event()
        ended.happen()
        self._fill()

    def _note(self, flight: Flight) -> None:
        self._num_rejected += not flight.group.is_kept
        self._progress.happen()
        self._fill()
