import os
import select
import signal
import threading
import time

import psutil
import pytest

from megatron_prime.workers.process import BACKSTOP_S, WorkerDiedError, WorkerProcess, WorkerTimeoutError
from tests.support import deadlines

MODULE = "tests.workers.toy_program"


@pytest.fixture
def start():
    started = []

    def start(greeting="hello", timeout_s=60.0, **options):
        started.append(WorkerProcess(MODULE, [greeting], timeout_s, **options))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.kill()
        assert not psutil.pid_exists(process.pid)


def test_requests_are_answered_in_one_process_after_another_alike(start):
    first, second = start(), start()
    assert first.ask(["echo", {"é": [1, None]}])[:2] == ["hello", {"é": [1, None]}]
    # Hashes of texts, which order sets, are equal in all workers.
    assert first.ask(["echo", 1]) == second.ask(["echo", 1])
    assert first.ask(["echo", 1])[3] == 60.0 + BACKSTOP_S
    assert first.ask(["read", 0]) == "", "stdin is empty"


def test_a_worker_that_is_ready_before_anybody_asks_is_ready():
    process = WorkerProcess(MODULE, ["hello"], 60.0)
    try:
        # As on a machine that is so busy that the parent comes later than the worker's first byte.
        assert process._process.stdout is not None
        assert select.select([process._process.stdout], [], [], deadlines.seconds(60))[0]
        process.wait_until_ready()
        assert process.ask(["echo", 1])[1] == 1
    finally:
        process.kill()


FAILURES = {
    "exit": (["exit", 3], WorkerDiedError, "ended with exit code 3"),
    "sleep": (["sleep", 60], WorkerTimeoutError, "no reply by the deadline"),
    "long": (["long", 2000], WorkerDiedError, "announced 2002 bytes"),
}


@pytest.mark.parametrize(("request_", "error", "match"), FAILURES.values(), ids=FAILURES)
def test_failures_of_a_request(start, request_, error, match):
    process = start(timeout_s=0.5, max_reply_bytes=1000)
    with pytest.raises(error, match=match):
        process.ask(request_)


@pytest.mark.parametrize(
    ("greeting", "match"),
    [("fail", "KeyError: 'no such tool'.*toy_program.py, line"), ("die", "exit code 4")],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(greeting, match):
    before = len(os.listdir("/proc/self/fd"))
    process = WorkerProcess(MODULE, [greeting], 60.0)
    with pytest.raises(WorkerDiedError, match=match):
        process.wait_until_ready()
    process.kill()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [child for child in psutil.Process().children() if MODULE in " ".join(child.cmdline())]


def test_another_thread_interrupts_a_request(start):
    process = start()
    timer = threading.Timer(0.2, process.interrupt)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(WorkerDiedError, match=f"killed by signal {int(signal.SIGKILL)}"):
        process.ask(["sleep", 50])
    assert time.monotonic() - begin < deadlines.seconds(10)
    timer.join()
    process.kill()
    process.interrupt()  # does nothing: another process may have the pid by now


def test_a_list_is_answered_in_order_and_maybe_in_parts(start):
    process = start("lists")
    assert [reply[1] for reply in process.ask_list([["echo", n] for n in range(100)])] == list(range(100))
    # The second request takes longer than a list may, so that the third one is left out.
    assert [reply[1] for reply in process.ask_list([["echo", 0], ["sleep", 0.05], ["echo", 2]])] == [0, 0.05]
    assert process.num_answered == 1
    assert [reply[1] for reply in process.ask_list([["echo", 2]])] == [2]


LISTS = {
    "exit": (["exit", 3], WorkerDiedError, "ended with exit code 3"),
    "hang": (["sleep", 60], WorkerTimeoutError, "no reply by the deadline"),
    "forged done": (["write", 6], WorkerDiedError, "a descriptor that it did not open"),
    "forged byte": (["write", 7], WorkerDiedError, "a descriptor that it did not open"),
}


@pytest.mark.parametrize(("request_", "error", "match"), LISTS.values(), ids=LISTS)
def test_a_failure_in_a_list_names_the_request_in_work(start, request_, error, match):
    process = start("lists", timeout_s=0.5)
    with pytest.raises(error, match=match):
        process.ask_list([["echo", 0], ["echo", 1], request_, ["echo", 3]])
    assert process.num_answered == 2


def test_each_request_of_a_list_has_its_own_deadline(start):
    process = start("lists", timeout_s=0.5)
    begin = time.monotonic()
    # The first one ends within LIST_S, so that the second one starts in the same list.
    with pytest.raises(WorkerTimeoutError):
        process.ask_list([["sleep", 0.01], ["sleep", 60]])
    assert process.num_answered == 1 and time.monotonic() - begin > 0.5
