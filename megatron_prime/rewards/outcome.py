"""The outcome of a verification: how it is made from a result or an exception, sent by a worker, counted and logged."""

import inspect
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from megatron_prime.workers.errors import MAX_DETAIL, describe_error, plain

_LOG = logging.getLogger(__name__)
MAX_KINDS = 20
"""Kinds of failures that are shown in full; later ones are counted together."""


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
    """Description of the failure in one line; if the status is ok, the verifier's reason for the reward, or empty."""
    is_away: bool = False
    """Whether the verifier is a server that gives no reward to anyone now: it should be asked again later."""
    traceback: str = ""
    """The traceback of the exception that the verifier raised, from its own code on; otherwise empty."""

    def __post_init__(self) -> None:
        assert math.isnan(self.reward) == (self.status is not VerificationStatus.OK)

    def as_message(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        # JSON has no NaN; the receiver restores it from None.
        reward = None if math.isnan(self.reward) else self.reward
        message = {"reward": reward, "status": self.status.value, "detail": self.detail}
        return message | ({"traceback": self.traceback} if self.traceback else {})

    @staticmethod
    def from_message(message: object) -> "VerificationOutcome":
        """Return the outcome that a worker has sent.

        Raises:
            ValueError: If the message is anything else than what `as_message` returns, such as a reward that is a text.
        """
        if not isinstance(message, dict) or not message.keys() <= {"reward", "status", "detail", "traceback"}:
            raise ValueError("it is not an object with the fields of an outcome")
        reward, status = message.get("reward"), VerificationStatus(message.get("status"))
        texts = message.get("detail"), message.get("traceback", "")
        if not isinstance(texts[0], str) or not isinstance(texts[1], str):
            raise ValueError("its description is not a text")
        if status is not VerificationStatus.OK:
            if reward is not None:
                raise ValueError(f"it has a reward and the status {status.value}")
            return VerificationOutcome(math.nan, status, texts[0], traceback=texts[1])
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
            raise ValueError("its reward is not a number in [0, 1]")
        return VerificationOutcome(float(reward), status, texts[0])


def outcome_of_result(result: object, reason: str = "") -> VerificationOutcome:
    """Return the outcome of a verifier that returned `result`: a reward, or an error if that is no number in [0, 1]."""
    if inspect.iscoroutine(result):
        result.close()
        return _error("the verifier is an async function, which nobody awaits: make it a plain one")
    # float() would take text as well, and numbers of numpy and torch have the method.
    if isinstance(result, str):
        return _error(f"ValueError: the verifier returned the text {result[:40]!r}, not a number in [0, 1]")
    if not hasattr(type(result), "__float__"):
        kind = type(result).__name__
        return _error(f"TypeError: the verifier returned a value of type {kind}, not a number in [0, 1]")
    try:
        reward = float(result)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - a user's type may raise anything
        return outcome_of_error(error)
    if not 0.0 <= reward <= 1.0:  # also rejects NaN
        return _error(f"reward {reward} is outside [0, 1]")
    return VerificationOutcome(reward + 0.0, VerificationStatus.OK, plain(reason)[:MAX_DETAIL])


def outcome_of_error(error: BaseException) -> VerificationOutcome:
    """Return the outcome of a verifier that raised, with the place in its own code and the traceback."""
    shown = describe_error(error)
    return VerificationOutcome(math.nan, VerificationStatus.ERROR, shown[0], traceback=shown[1])


def _error(detail: str) -> VerificationOutcome:
    return VerificationOutcome(math.nan, VerificationStatus.ERROR, detail)


class OutcomeCounts:
    """Counts the outcomes of a verifier by status, and logs those without a reward.

    The first failure of a kind is shown whole, with its traceback; those that follow are counted, in one line a batch.
    """

    def __init__(self) -> None:
        self._counts: Counter[VerificationStatus] = Counter()
        self._failures: Counter[str] = Counter()
        self._num_restarts = 0
        self._lock = threading.Lock()

    def add(self, outcomes: Iterable[VerificationOutcome]) -> None:
        """Count outcomes, with a warning for those that have no reward although their verifier is there.

        Threads may call it at the same time.
        """
        with self._lock:
            self._add(outcomes)

    def _add(self, outcomes: Iterable[VerificationOutcome]) -> None:
        repeated: Counter[str] = Counter()
        for outcome in outcomes:
            self._counts[outcome.status] += 1
            if outcome.status is VerificationStatus.OK or outcome.is_away:
                continue
            kind = _kind(outcome)
            if kind not in self._failures and len(self._failures) >= MAX_KINDS:
                kind = f"{outcome.status.value} of other kinds"
            self._failures[kind] += 1
            if self._failures[kind] > 1 or kind.endswith("of other kinds"):
                repeated[kind] += 1
                continue
            trace = f"\n{outcome.traceback}" if outcome.traceback else ""
            _LOG.warning("verification ended with %s: %s%s", outcome.status.value, outcome.detail, trace)
        for kind, count in repeated.items():
            _LOG.warning("verification: %d more with %s (%d so far)", count, kind, self._failures[kind])

    def add_restart(self) -> None:
        """Count a restarted worker, or a repeated request. Threads may call it at the same time."""
        with self._lock:
            self._num_restarts += 1

    def as_dict(self) -> dict[str, int]:
        """Return the number of outcomes by status, and `restarts`."""
        counts = {status.value: self._counts[status] for status in VerificationStatus}
        return counts | {"restarts": self._num_restarts}


def _kind(outcome: VerificationOutcome) -> str:
    """Return a text that is equal for failures with the same cause, whatever numbers it names."""
    # With a traceback, the type of the exception and its place are the cause, whatever the message quotes.
    error, _, place = outcome.detail.rpartition(" (") if outcome.traceback else (outcome.detail, "", "")
    if place:
        return f"{outcome.status.value}: {error.partition(':')[0]} ({place}"
    return f"{outcome.status.value}: {re.sub(r'[0-9]+', '#', outcome.detail)[:100]}"
