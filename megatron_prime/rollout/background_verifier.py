"""Verification in threads, so that responses are judged while others are being sampled. Knows one rank alone."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from megatron_prime.sample import Sample

MAX_SHARES = 256
"""Threads, each of which waits for the outcomes of one `put`: at least as many as a verifier has workers, so that no
worker is idle because all threads wait for slow responses."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
"""Limits of the time between two attempts to reach a server, which doubles."""


class Outcome(Protocol):
    """The result of verifying one response."""

    @property
    def reward(self) -> float:
        """Reward in [0, 1]; NaN if the verifier failed or timed out."""
        ...

    @property
    def is_away(self) -> bool:
        """Whether the verifier is a server that gives no reward to anyone now."""
        ...

    @property
    def detail(self) -> str:
        """The reason for the reward, or the description of a failure; may be empty."""
        ...


Verify = Callable[[Sequence[Sample]], Sequence[Outcome]]
"""Maps each response to its outcome, in order."""
Place = tuple[int, int]
"""Number of a group, and of a response in it."""
Verdict = tuple[Place, float, str]
"""Place of a response, its reward, and the reason for it."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the verifications of one rank."""

    fault: str = ""
    """The exception that ended them; empty if there is none."""
    away_s: float | None = None
    """Seconds since a reward server was found away; None if none is."""
    away_detail: str = ""
    """The first failure of that server."""


class BackgroundVerifier:
    """Verifies responses in threads: what one `put` adds together, and beside what others have added.

    A server that is away is asked again and again, and holds up the responses that come after it.

    Args:
        verify: returns the outcomes; several threads call it at the same time.
        executor: the threads, which several verifiers may share.
    """

    def __init__(self, verify: Verify, executor: ThreadPoolExecutor) -> None:
        self._verify = verify
        self._executor = executor
        self._changed = threading.Condition()
        self._held_up: list[tuple[Place, Sample]] = []
        """Responses whose server is away, and those that came after them."""
        self._is_asking_again = False
        """Whether a thread is at work on them."""
        self._num_open = 0
        """Responses without a verdict, those in work included."""
        self._verdicts: list[Verdict] = []
        self._away_since: float | None = None
        self._away_detail = ""
        self._was_away = False
        """Whether a server was away at the last `take`."""
        self.fault: BaseException | None = None
        """The exception that ended the verifications."""
        self._is_closed = False

    def put(self, share: Sequence[tuple[Place, Sample]]) -> None:
        """Add responses to verify."""
        if not share:
            return
        with self._changed:
            self._num_open += len(share)
            if self._is_asking_again:
                self._held_up += share
                return
        self._executor.submit(self._work, list(share))

    def take(self, wait_s: float) -> tuple[list[Verdict], Status]:
        """Return the verdicts that are new, and how the others are going.

        Waits until there is none left to wait for, or a server goes away or comes back, at most `wait_s`.
        """

        def has_news() -> bool:
            is_away = self._away_since is not None
            return not self._num_open or self.fault is not None or is_away is not self._was_away

        with self._changed:
            self._changed.wait_for(has_news, wait_s)
            self._was_away = self._away_since is not None
            verdicts, self._verdicts = self._verdicts, []
            away_s = None if self._away_since is None else time.monotonic() - self._away_since
            fault = "" if self.fault is None else f"{type(self.fault).__name__}: {self.fault}"
            return verdicts, Status(fault, away_s, self._away_detail)

    def close(self) -> None:
        """Give up all verifications: what waits does not begin, and what is in work has no effect."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self, share: Sequence[tuple[Place, Sample]]) -> None:
        try:
            if self._is_closed or not self._ask(share):
                return
            with self._changed:
                if self._is_asking_again:
                    return
                self._is_asking_again = True
            self._ask_again()
        except BaseException as error:  # noqa: BLE001 - the thread that waits for the verdicts raises it
            with self._changed:
                self.fault = error
                self._changed.notify_all()

    def _ask_again(self) -> None:
        """Ask for the responses that are held up until there are none."""
        pause_s, is_back = FIRST_PAUSE_S, False
        while True:
            with self._changed:
                if not is_back:
                    self._changed.wait_for(lambda: self._is_closed, pause_s)
                if self._is_closed:
                    return
                if not self._held_up:
                    self._is_asking_again = False
                    return
                # One response shows whether a server is back. One that hangs would hold up all of them.
                count = len(self._held_up) if is_back else 1
                share, self._held_up = self._held_up[:count], self._held_up[count:]
            is_back = not self._ask(share)
            if is_back:
                with self._changed:
                    self._away_since = None
                    self._changed.notify_all()
            else:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _ask(self, share: Sequence[tuple[Place, Sample]]) -> bool:
        """Verify responses and publish the verdicts. Return whether a server is away, which holds up its responses."""
        outcomes = list(self._verify([sample for _, sample in share]))
        if len(outcomes) != len(share):
            raise RuntimeError(f"the verifier returned {len(outcomes)} outcomes for {len(share)} responses")
        left = [each for each, outcome in zip(share, outcomes, strict=True) if outcome.is_away]
        with self._changed:
            for (place, _), outcome in zip(share, outcomes, strict=True):
                if not outcome.is_away:
                    self._verdicts.append((place, float(outcome.reward), outcome.detail))
                    self._num_open -= 1
                elif self._away_since is None:
                    self._away_since, self._away_detail = time.monotonic(), outcome.detail
            self._held_up = left + self._held_up
            self._changed.notify_all()
        return bool(left)
