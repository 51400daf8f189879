"""The protocol of a verifier, and the registry in which a configuration finds one by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from megatron_prime.rewards.outcome import VerificationOutcome, outcome_of_error, outcome_of_result
from megatron_prime.sample import Sample

TEXTS = ("response_text", "answer")
"""The fields of a sample that every verifier uses."""


class UnusableVerifierError(ValueError):
    """A verifier cannot be used as it is; the message says what its author has to change."""


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


@runtime_checkable
class Explains(Protocol):
    """A verifier that also says why a response has its reward, for `megatron-prime verify` and messages."""

    def explain(self, response_text: str, answer: str) -> tuple[float, str]:
        """Return the reward that `verify` returns, and the reason in one line."""
        ...


@runtime_checkable
class ReadsSamples(Protocol):
    """A verifier that uses more of a sample than its texts."""

    def fields(self) -> Sequence[str]:
        """Return the names of the fields of `Sample` that it uses.

        Raises:
            UnusableVerifierError: If it cannot be called with the fields that there are.
        """
        ...

    def verify_sample(self, sample: Sample) -> float:
        """Return the reward in [0, 1], as `Verifier.verify` does."""
        ...


_FACTORIES: dict[str, Callable[..., Verifier]] = {}
_ANSWER_CHECKS: dict[str, Callable[[str], object]] = {}


def register(
    name: str, factory: Callable[..., Verifier], check_answer: Callable[[str], object] | None = None
) -> None:
    """Register a factory, so that `reward.verifier = name` builds `factory(**settings)`.

    For a verifier that runs in worker processes, the registration must happen on importing a module that the workers
    can import too; see `VerifierPool`.

    Args:
        name: Name of the verifier.
        factory: Builds it.
        check_answer: Raises ValueError for a ground truth that the verifier could give no reward for. It is called for
            every row before anything is sampled, and must be fast.

    Raises:
        ValueError: If another factory is registered under the name.
    """
    known = _FACTORIES.setdefault(name, factory)
    if known is not factory:
        raise ValueError(f"the verifier name {name!r} is taken by {known!r}: choose another name")
    if check_answer is not None:
        _ANSWER_CHECKS[name] = check_answer


def get(name: str, settings: Mapping[str, Any] | None = None) -> Verifier:
    """Return a new verifier of that name, built with `settings`.

    Raises:
        ValueError: If the name is not registered; the error lists the registered names.
    """
    if name not in _FACTORIES:
        raise ValueError(f"unknown verifier {name!r}: known are {', '.join(names())}")
    return _FACTORIES[name](**(settings or {}))


def check_answer(name: str, answer: str) -> None:
    """Raise ValueError if the verifier of that name could give no reward with this ground truth.

    Names that are not registered, and verifiers that take any ground truth, raise nothing.
    """
    if name in _ANSWER_CHECKS:
        _ANSWER_CHECKS[name](answer)


def names() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_FACTORIES))


def fields_of(verifier: Verifier) -> Sequence[str]:
    """Return the names of the fields of `Sample` that a verifier uses."""
    return verifier.fields() if isinstance(verifier, ReadsSamples) else TEXTS


def run_verifier(verifier: Verifier, sample: Sample) -> VerificationOutcome:
    """Run a verifier in this process and convert its reward or exception to an outcome, without a time limit."""
    try:
        if isinstance(verifier, ReadsSamples):
            return outcome_of_result(verifier.verify_sample(sample))
        if isinstance(verifier, Explains):
            return outcome_of_result(*verifier.explain(sample.response_text, sample.answer))
        return outcome_of_result(verifier.verify(sample.response_text, sample.answer))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - no failure of a single response may stop the run
        return outcome_of_error(error)
