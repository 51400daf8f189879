"""The moments at which a run saves a checkpoint."""

import time
from collections.abc import Callable
from typing import Literal

COST_FACTOR = 20.0
"""Time between two automatic saves, as a multiple of the time that a save takes: they cost a run at most 5 %."""
MIN_INTERVAL_S = 30.0
MAX_INTERVAL_S = 3600.0
"""Limits of the time between two automatic saves: no tiny model wears out a disk, no run loses much over an hour."""


class SaveSchedule:
    """Decides after each step whether to save. Every rank has one.

    Args:
        every: checkpoint.save_every: a number of steps, 0 for none, or "auto": after the first step of each attempt,
            which also shows that saving works, and from then on at intervals that depend on the time a save takes.
        agree: returns whether its argument is true on any rank; collective.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        every: int | Literal["auto"],
        agree: Callable[[bool], bool] = lambda flag: flag,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every = every
        self._agree = agree
        self._clock = clock
        self._last: float | None = None

    def is_due(self, done: int, save_s: float) -> bool:
        """Return whether to save after `done` steps; `save_s` is the seconds that the last save took. Collective."""
        if isinstance(self._every, int):
            return self._every > 0 and done % self._every == 0
        interval = min(max(COST_FACTOR * save_s, MIN_INTERVAL_S), MAX_INTERVAL_S)
        is_due = self._agree(self._last is None or self._clock() - self._last >= interval)
        if is_due:
            self._last = self._clock()
        return is_due
