"""Simulated time: actions at moments, and processes that wait for moments and for one another.

A process is a generator. It yields a number of seconds, or an `Event`, and continues when they have passed or it has
happened.
"""

import heapq
from collections.abc import Callable, Generator
from typing import Any

Process = Generator["float | Event", None, Any]


class Event:
    """Something that happens once."""

    def __init__(self) -> None:
        self.has_happened = False
        self.value: Any = None
        """The result of the process whose end this is."""
        self._waiting: list[Callable[[], None]] = []

    def happen(self, value: Any = None) -> None:
        """Let everything continue that waits for this. A second call has no effect."""
        if self.has_happened:
            return
        self.has_happened, self.value = True, value
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` when this has happened."""
        if self.has_happened:
            action()
        else:
            self._waiting.append(action)


class Clock:
    """The simulated time, and what is to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._num_calls = 0

    def call(self, delay: float, action: Callable[[], None]) -> None:
        """Call `action` after some seconds; of two at the same moment, the one that was asked for first comes first."""
        assert delay >= 0, "nothing happens in the past"
        heapq.heappush(self._queue, (self.now + delay, self._num_calls, action))
        self._num_calls += 1

    def start(self, process: Process) -> Event:
        """Run a process up to its first wait, and return the event of its end."""
        ended = Event()

        def resume() -> None:
            try:
                wait = next(process)
            except StopIteration as stop:
                ended.happen(stop.value)
                return
            if isinstance(wait, Event):
                wait.then(resume)
            else:
                self.call(wait, resume)

        resume()
        return ended

    def run(self, until: Event) -> Any:
        """Let time pass until an event, and return its value.

        Raises:
            RuntimeError: nothing is left to happen before it.
        """
        while not until.has_happened:
            if not self._queue:
                raise RuntimeError("the simulated processes wait for one another for ever")
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return until.value
