"""What a verifier is, and the names under which a configuration finds one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Verifier(Protocol):
    """Judges one response. Must be deterministic: verifying again gives the same reward."""

    in_process: bool
    """True for a verifier that is certain to return at once on any text: it runs in the caller, without processes."""

    def verify(self, response_text: str, answer: str) -> float:
        """Reward in [0, 1] of the response to a prompt with this ground truth.

        A response that is wrong, empty or makes no sense is 0. An exception means that no reward can be given (a
        ground truth that does not parse, say) and never trains.
        """
        ...


@runtime_checkable
class WarmUp(Protocol):
    """A verifier with something slow to load, which must not count against the first response's deadline."""

    def warm_up(self) -> None:
        """Called once in each worker, before the first response."""
        ...


class VerificationStatus(StrEnum):
    """How a verification ended."""

    OK = "ok"
    """The verifier gave a reward."""
    TIMEOUT = "timeout"
    """It ran past the deadline and its process was killed; not tried again, because it would take as long again."""
    ERROR = "error"
    """It raised, gave no number in [0, 1], or its process died twice."""


@dataclass(frozen=True, slots=True)
class VerificationOutcome:
    """The verdict on one response."""

    reward: float
    """In [0, 1] when the status is ok, NaN otherwise: such a response never trains."""
    status: VerificationStatus
    detail: str = ""
    """What went wrong, for the log; empty when ok."""

    def __post_init__(self) -> None:
        assert math.isnan(self.reward) == (self.status is not VerificationStatus.OK)


_FACTORIES: dict[str, Callable[..., Verifier]] = {}


def register(name: str, factory: Callable[..., Verifier]) -> None:
    """Make `factory(**settings)` reachable as `reward.verifier = name`.

    For a verifier that runs in worker processes, `name` must be registered by importing a module that the worker can
    import too: see `VerifierPool`.

    Raises:
        ValueError: the name is taken by another factory.
    """
    known = _FACTORIES.setdefault(name, factory)
    if known is not factory:
        raise ValueError(f"verifier name {name!r} is taken by {known!r}: choose another")


def get(name: str, settings: Mapping[str, Any] | None = None) -> Verifier:
    """A new verifier of that name, made with `settings`.

    Raises:
        ValueError: nothing is registered under it; lists what is.
    """
    if name not in _FACTORIES:
        raise ValueError(f"unknown verifier {name!r}: known are {', '.join(names())}")
    return _FACTORIES[name](**(settings or {}))


def names() -> tuple[str, ...]:
    """Registered names, sorted."""
    return tuple(sorted(_FACTORIES))


def run_verifier(verifier: Verifier, response_text: str, answer: str) -> VerificationOutcome:
    """Run a verifier here and put whatever it does into an outcome. Does not bound its time."""
    try:
        reward = float(verifier.verify(response_text, answer))
    except Exception as error:  # noqa: BLE001 - one response's failure, of whatever kind, must not stop the run
        return VerificationOutcome(
            math.nan, VerificationStatus.ERROR, f"{type(error).__name__}: {error}"[:500]
        )
    if not 0.0 <= reward <= 1.0:
        return VerificationOutcome(math.nan, VerificationStatus.ERROR, f"reward {reward} is outside [0, 1]")
    return VerificationOutcome(reward, VerificationStatus.OK)
