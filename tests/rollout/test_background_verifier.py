"""A thread verifies what waits, while the caller goes on."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_prime.rollout import background_verifier
from megatron_prime.rollout.background_verifier import BackgroundVerifier
from tests.support import deadlines
from tests.support.rollout_doubles import FixedOutcome


@pytest.fixture
def executor():
    threads = ThreadPoolExecutor(1)
    yield threads
    threads.shutdown(wait=False)


def share(*numbers):
    return [((number, 0), number) for number in numbers]


def test_what_waits_is_verified_together_and_verdicts_are_there_when_the_call_ends(executor):
    asked, may_end = [], threading.Event()

    def verify(samples):
        asked.append(list(samples))
        may_end.wait(deadlines.seconds(30))
        return [FixedOutcome(float(sample), detail=f"{sample}") for sample in samples]

    background = BackgroundVerifier(verify, executor)
    background.put(share(1))
    while not asked:
        time.sleep(0.001)
    background.put(share(2, 3))
    background.put(share(4))
    assert background.take(0.0)[0] == []
    may_end.set()
    verdicts = []
    while len(verdicts) < 4:
        verdicts += background.take(deadlines.seconds(30))[0]
    assert verdicts == [((number, 0), float(number), str(number)) for number in (1, 2, 3, 4)]
    assert asked == [[1], [2, 3, 4]]


def test_an_exception_is_reported(executor):
    background = BackgroundVerifier(lambda samples: 1 / 0, executor)
    background.put(share(1))
    assert background.take(deadlines.seconds(30))[1].fault == "ZeroDivisionError: division by zero"
    assert isinstance(background.fault, ZeroDivisionError)


def test_a_server_that_is_away_is_asked_again_until_the_verifier_is_closed(executor, monkeypatch):
    monkeypatch.setattr(background_verifier, "FIRST_PAUSE_S", 0.001)
    asked = []

    def verify(samples):
        asked.append(list(samples))
        return [FixedOutcome(math.nan if sample == 2 else 1.0, sample == 2, "refused") for sample in samples]

    background = BackgroundVerifier(verify, executor)
    background.put(share(1, 2))
    verdicts, status = background.take(deadlines.seconds(30))
    assert (verdicts, status.away_detail) == ([((1, 0), 1.0, "refused")], "refused")
    assert status.away_s is not None
    while len(asked) < 4:
        time.sleep(0.001)
    assert asked[:4] == [[1, 2], [2], [2], [2]]
    background.close()  # It ends the thread's work.
    executor.submit(lambda: None).result(deadlines.seconds(30))


def test_closing_drops_what_waits_and_does_not_wait_for_what_is_in_work(executor):
    asked, may_end = [], threading.Event()

    def verify(samples):
        asked.append(list(samples))
        may_end.wait(deadlines.seconds(30))
        return [FixedOutcome(1.0) for _ in samples]

    first, second = BackgroundVerifier(verify, executor), BackgroundVerifier(verify, executor)
    first.put(share(1))
    while not asked:
        time.sleep(0.001)
    first.put(share(2))
    first.close()
    second.put(share(3))
    may_end.set()
    assert second.take(deadlines.seconds(30))[0] == [((3, 0), 1.0, "")]
    assert asked == [[1], [3]], "one thread verifies for both, one after the other"
