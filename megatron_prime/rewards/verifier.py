"""The protocol of a verifier, and the registry in which a configuration finds one by name."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

_LOG = logging.getLogger(__name__)


@runtime_checkable
class Verifier(Protocol):
    """A verifier of single responses. It must be deterministic: verifying again gives the same reward."""

    in_process: bool
    """True for a verifier that returns quickly on any text; it runs in the calling process, without workers."""

    def verify(self, response_text: str, answer: str) -> float:
        """Return the reward in [0, 1] of a response, given the ground truth of its prompt.

        A wrong, empty or meaningless response has reward 0. An exception means that no reward can be given, for example
        because the ground truth is invalid; such a response is never trained on.
        """
        ...


@runtime_checkable
class WarmUp(Protocol):
    """A verifier with slow initialization, which must not count against the deadline of the first response."""

    def warm_up(self) -> None:
        """Load everything that is slow to load; called once in each worker, before the first response."""
        ...


class VerificationStatus(StrEnum):
    """The result status of a verification."""

    OK = "ok"
    """The verifier gave a reward."""
    TIMEOUT = "timeout"
    """The verifier ran past the deadline and its process was killed. It is not retried: it would take as long again."""
    ERROR = "error"
    """The verifier raised, returned no number in [0, 1], or its process died twice."""


@dataclass(frozen=True, slots=True)
class VerificationOutcome:
    """The outcome of verifying one response."""

    reward: float
    """Reward in [0, 1] if the status is ok, otherwise NaN: such a response is never trained on."""
    status: VerificationStatus
    detail: str = ""
    """Description of the failure for the log; empty if the status is ok."""
    is_away: bool = False
    """Whether the verifier is a server that gives no reward to anyone now: it should be asked again later."""

    def __post_init__(self) -> None:
        assert math.isnan(self.reward) == (self.status is not VerificationStatus.OK)


class OutcomeCounts:
    """Counts the outcomes of a verifier by status, and logs those without a reward."""

    def __init__(self) -> None:
        self._counts: Counter[VerificationStatus] = Counter()
        self._num_restarts = 0
        self._lock = threading.Lock()

    def add(self, outcomes: Iterable[VerificationOutcome]) -> None:
        """Count outcomes, with a warning for each that has no reward although its verifier is there."""
        for outcome in outcomes:
            self._counts[outcome.status] += 1
            if outcome.status is not VerificationStatus.OK and not outcome.is_away:
                _LOG.warning("verification ended with %s: %s", outcome.status.value, outcome.detail)

    def add_restart(self) -> None:
        """Count a restarted worker, or a repeated request. Threads of a pool call it at the same time."""
        with self._lock:
            self._num_restarts += 1

    def as_dict(self) -> dict[str, int]:
        """Return the number of outcomes by status, and `restarts`."""
        counts = {status.value: self._counts[status] for status in VerificationStatus}
        return counts | {"restarts": self._num_restarts}


_FACTORIES: dict[str, Callable[..., Verifier]] = {}


def register(name: str, factory: Callable[..., Verifier]) -> None:
    """Register a factory, so that `reward.verifier = name` builds `factory(**settings)`.

    For a verifier that runs in worker processes, the registration must happen on importing a module that the workers
    can import too; see `VerifierPool`.

    Raises:
        ValueError: If another factory is registered under the name.
    """
    known = _FACTORIES.setdefault(name, factory)
    if known is not factory:
        raise ValueError(f"the verifier name {name!r} is taken by {known!r}: choose another name")


def get(name: str, settings: Mapping[str, Any] | None = None) -> Verifier:
    """Return a new verifier of that name, built with `settings`.

    Raises:
        ValueError: If the name is not registered; the error lists the registered names.
    """
    if name not in _FACTORIES:
        raise ValueError(f"unknown verifier {name!r}: known are {', '.join(names())}")
    return _FACTORIES[name](**(settings or {}))


def names() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_FACTORIES))


def run_verifier(verifier: Verifier, response_text: str, answer: str) -> VerificationOutcome:
    """Run a verifier in this process and convert its reward or exception to an outcome, without a time limit."""
    try:
        reward = float(verifier.verify(response_text, answer))
    except Exception as error:  # noqa: BLE001 - no failure of a single response may stop the run
        return VerificationOutcome(
            math.nan, VerificationStatus.ERROR, f"{type(error).__name__}: {error}"[:500]
        )
    if not 0.0 <= reward <= 1.0:  # also rejects NaN
        return VerificationOutcome(math.nan, VerificationStatus.ERROR, f"reward {reward} is outside [0, 1]")
    return VerificationOutcome(reward, VerificationStatus.OK)
