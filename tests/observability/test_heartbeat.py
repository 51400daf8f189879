"""What is told is what is read, and a thread's place is named."""

import threading

from megatron_prime.observability import Metrics
from megatron_prime.observability.heartbeat import beat, begin_step, current, phase, place_of


def test_signs_count_up_and_name_the_last_event():
    begin_step(4)
    before, at = current().count, current().at
    beat("microbatch")
    now = current()
    assert (now.step, now.event, now.count) == (4, "microbatch", before + 1)
    assert now.at >= at
    beat("microbatch of this rank", is_common=False)
    assert (current().event, current().count) == ("microbatch of this rank", before + 1)


def test_phases_nest_and_end_when_the_block_fails():
    with phase("step"):
        try:
            with phase("rollout"):
                assert current().phase == "rollout"
                raise KeyError
        except KeyError:
            pass
        assert (current().phase, current().event) == ("step", "end of rollout")


def test_timed_phases_of_metrics_are_phases():
    with Metrics().timed("policy"):
        assert current().phase == "policy"
    assert current().phase != "policy"


def test_a_wait_for_others_is_told_from_work():
    event, ended = threading.Event(), threading.Event()

    def waits():
        event.wait()

    def works():
        while not ended.is_set():
            pass

    threads = [threading.Thread(target=target) for target in (waits, works)]
    for thread in threads:
        thread.start()
    try:
        # Event.wait itself is a Python function of the standard library, which calls lock.acquire().
        places = [place_of(thread.ident) for thread in threads]
        assert "in works" not in places[0].text
        assert not places[1].is_waiting
        assert "works" in places[1].text or "is_set" in places[1].text
    finally:
        event.set()
        ended.set()
    for thread in threads:
        thread.join()
    assert place_of(threads[0].ident).text == "the thread has ended"


def test_calls_that_wait_for_a_gpu_count_on_a_gpu_alone(tmp_path):
    entered, lock = threading.Event(), threading.Lock()
    lock.acquire()

    class Tensor:
        """Its item() is a C function: the innermost Python line is the one that calls it."""

        item = lock.acquire

    path = tmp_path / "reads.py"
    path.write_text("def read(tensor, entered):\n    entered.set()\n    tensor.item()\n")
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)

    thread = threading.Thread(target=scope["read"], args=(Tensor, entered))
    thread.start()
    entered.wait()
    while "reads.py:3" not in place_of(thread.ident).text:
        pass
    assert not place_of(thread.ident).is_waiting
    assert place_of(thread.ident, is_cuda=True).is_waiting
    lock.release()
    thread.join()
