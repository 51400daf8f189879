import logging
import math
import os

import numpy
import pytest
import torch

from megatron_prime.rewards.outcome import (
    MAX_KINDS,
    OutcomeCounts,
    VerificationOutcome,
    VerificationStatus,
    outcome_of_error,
    outcome_of_result,
)

OK, TIMEOUT, ERROR = VerificationStatus.OK, VerificationStatus.TIMEOUT, VerificationStatus.ERROR
FULL = VerificationOutcome(math.nan, ERROR, "why", traceback="Traceback ...")


class HostileError(Exception):
    def __str__(self):
        raise ValueError("no text")


class NoFloat(float):
    def __float__(self):
        raise KeyError("hidden")


async def later():
    return 1.0


@pytest.mark.parametrize(
    "result",
    [0, 1, 0.25, -0.0, True, numpy.float32(0.5), numpy.bool_(True), torch.tensor(1.0), torch.tensor([0.5])],
    ids=repr,
)
def test_numbers_are_rewards(result):
    outcome = outcome_of_result(result)
    assert (outcome.status, outcome.reward, type(outcome.reward)) == (OK, float(result), float)
    assert math.copysign(1, outcome.reward) == 1


RESULTS = {
    "text": ("1.0", "the text '1.0'"),
    "bytes": (b"1", "type bytes"),
    "nothing": (None, "type NoneType"),
    "list": ([1.0], "type list"),
    "pair": ((1.0, "why"), "type tuple"),
    "object": ({"score": 1.0}, "type dict"),
    "complex": (1j, "type complex"),
    "above": (1.0000001, "outside"),
    "below": (-1e-9, "outside"),
    "NaN": (math.nan, "outside"),
    "infinite": (math.inf, "outside"),
    "huge": (10**400, "OverflowError"),
    "two numbers": (numpy.ones(2), "TypeError"),
    "NaN of numpy": (numpy.float32("nan"), "outside"),
    "raises": (NoFloat(1.0), "KeyError"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_other_results_are_errors(case):
    result, reason = RESULTS[case]
    outcome = outcome_of_result(result)
    assert outcome.status is ERROR and math.isnan(outcome.reward)
    assert reason in outcome.detail


def test_an_async_function_is_explained():
    assert "async function" in outcome_of_result(later()).detail


def test_an_exception_has_its_place_and_traceback():
    def inner():
        return int("x")

    def reward():
        return inner()

    for call in (reward, lambda: numpy.linalg.inv(numpy.zeros((2, 2)))):
        try:
            call()
        except (ValueError, numpy.linalg.LinAlgError) as error:
            outcome = outcome_of_error(error)
        # Also of an error within a library, the place is in the code of the verifier.
        assert f"({__file__}, line " in outcome.detail
    assert "\n" not in outcome.detail
    assert "in call" in outcome.traceback or "<lambda>" in outcome.traceback


@pytest.mark.parametrize(
    "error",
    [
        HostileError(),
        ValueError("\ud800"),
        ValueError("x" * 10**6),
        RecursionError(),
        SystemExit(3),
        ValueError("\x1b[2J\r\nfake"),
    ],
    ids=["text", "half", "long", "deep", "exit", "cursor"],
)
def test_any_exception_can_be_described(error):
    outcome = outcome_of_error(error)
    assert type(error).__name__ in outcome.detail
    assert len((outcome.detail + outcome.traceback).encode()) < 50_000
    assert (outcome.detail + outcome.traceback).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "outcome",
    [VerificationOutcome(0.5, OK, "r"), VerificationOutcome(math.nan, TIMEOUT), FULL],
    ids=["ok", "timeout", "error"],
)
def test_an_outcome_survives_its_message(outcome):
    back = VerificationOutcome.from_message(outcome.as_message())
    assert (back.status, back.detail, back.traceback) == (outcome.status, outcome.detail, outcome.traceback)
    assert back.reward == outcome.reward or math.isnan(outcome.reward)


GOOD = {"reward": 1.0, "status": "ok", "detail": ""}
FORGED = {
    "no object": [1.0],
    "nothing": None,
    "no status": {"reward": 1.0, "detail": ""},
    "unknown status": GOOD | {"status": "right"},
    "a list as status": GOOD | {"status": []},
    "text": GOOD | {"reward": "1.0"},
    "truth value": GOOD | {"reward": True},
    "NaN": GOOD | {"reward": math.nan},
    "infinite": GOOD | {"reward": math.inf},
    "negative": GOOD | {"reward": -1},
    "above": GOOD | {"reward": 2},
    "no reward": GOOD | {"reward": None},
    "a reward of an error": GOOD | {"status": "error"},
    "no detail": {"reward": 1.0, "status": "ok"},
    "a number as detail": GOOD | {"detail": 1},
    "a list as traceback": GOOD | {"traceback": []},
    "away": GOOD | {"is_away": True},
}


@pytest.mark.parametrize("case", FORGED)
def test_a_message_that_no_worker_sends_is_refused(case):
    with pytest.raises(ValueError):
        VerificationOutcome.from_message(FORGED[case])


def failures(caplog, outcomes):
    counts = OutcomeCounts()
    caplog.set_level("WARNING")
    logging.getLogger("megatron_prime").propagate = True
    for batch in outcomes:
        counts.add(batch)
    return counts, [record.getMessage() for record in caplog.records]


def test_the_first_failure_is_shown_whole_and_repetitions_are_counted(caplog):
    def failing(text):
        try:
            return int(text)
        except ValueError as error:
            return outcome_of_error(error)

    first, other = (
        [failing("a"), failing("b"), failing("c")],
        VerificationOutcome(math.nan, TIMEOUT, "no outcome"),
    )
    counts, lines = failures(caplog, [first, [failing("d"), other, VerificationOutcome(1.0, OK)]])
    assert len(lines) == 4
    assert lines[0].startswith(
        "verification ended with error: ValueError: invalid literal for int() with base 10: 'a'"
    )
    assert "Traceback (most recent call last)" in lines[0] and f'File "{__file__}"' in lines[0]
    assert lines[1].startswith("verification: 2 more with error: ValueError (") and lines[1].endswith(
        "(3 so far)"
    )
    assert lines[2] == "verification ended with timeout: no outcome"
    assert lines[3].startswith("verification: 1 more with error: ValueError") and lines[3].endswith(
        "(4 so far)"
    )
    assert counts.as_dict() == {"ok": 1, "timeout": 1, "error": 4, "restarts": 0}


def test_a_log_does_not_grow_with_the_kinds_of_failures(caplog):
    kinds = [
        VerificationOutcome(math.nan, ERROR, chr(ord("a") + kind % 26) * (1 + kind // 26))
        for kind in range(100)
    ]
    _, lines = failures(caplog, [kinds])
    assert len(lines) == MAX_KINDS + 1
    assert lines[-1] == "verification: 80 more with error of other kinds (80 so far)"
    assert os.linesep not in lines[-1]
