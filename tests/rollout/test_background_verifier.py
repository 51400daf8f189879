"""Threads verify responses, while the caller goes on."""

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
    threads = ThreadPoolExecutor(8)
    yield threads
    threads.shutdown(wait=False)


def share(*numbers):
    return [((number, 0), number) for number in numbers]


def test_a_slow_response_holds_up_its_own_share_alone(executor):
    may_end = threading.Event()

    def verify(samples):
        if 1 in samples:
            may_end.wait(deadlines.seconds(30))
        return [FixedOutcome(float(sample), detail=f"{sample}") for sample in samples]

    background = BackgroundVerifier(verify, executor)
    background.put(share(1, 2))
    background.put(share(3, 4))
    background.put(share(5))

    def taken(count):
        verdicts = []
        while len(verdicts) < count:
            verdicts += background.take(0.01)[0]
        return sorted(verdicts)

    assert taken(3) == [((number, 0), float(number), str(number)) for number in (3, 4, 5)]
    assert background.take(0.0)[0] == []
    may_end.set()
    assert taken(2) == [((number, 0), float(number), str(number)) for number in (1, 2)]


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


def test_responses_that_come_while_a_server_is_away_wait_for_it(executor, monkeypatch):
    monkeypatch.setattr(background_verifier, "FIRST_PAUSE_S", 0.001)
    asked, is_back = [], threading.Event()

    def verify(samples):
        asked.append(list(samples))
        return [FixedOutcome(1.0 if is_back.is_set() else math.nan, not is_back.is_set()) for _ in samples]

    background = BackgroundVerifier(verify, executor)
    background.put(share(1, 2))
    background.put(share(3))
    while background.take(0.001)[1].away_s is None or not background._is_asking_again:
        pass
    background.put(share(4, 5))
    assert not any({4, 5} & set(samples) for samples in asked)
    is_back.set()
    verdicts = []
    while len(verdicts) < 5:
        verdicts += background.take(0.01)[0]
    assert sorted(place for place, _, _ in verdicts) == [(number, 0) for number in range(1, 6)]
    assert background.take(0.0)[1].away_s is None


def test_a_server_that_answers_does_not_end_the_absence_of_another(executor, monkeypatch):
    monkeypatch.setattr(background_verifier, "FIRST_PAUSE_S", 0.001)
    held = threading.Event()

    def verify(samples):
        if 2 in samples:
            held.wait(deadlines.seconds(30))
        return [FixedOutcome(math.nan if sample == 1 else 1.0, sample == 1) for sample in samples]

    background = BackgroundVerifier(verify, executor)
    background.put(share(2))
    background.put(share(1))
    while background.take(0.001)[1].away_s is None:
        pass
    held.set()
    while not background.take(0.001)[0]:
        pass
    first = background.take(0.0)[1].away_s
    assert background.take(0.01)[1].away_s > first > 0
    background.close()


def test_closing_drops_what_waits_and_does_not_wait_for_what_is_in_work():
    asked, may_end, executor = [], threading.Event(), ThreadPoolExecutor(1)

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
    assert asked == [[1], [3]]
    executor.shutdown()
