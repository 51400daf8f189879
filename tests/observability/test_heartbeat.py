"""Checks that recorded events can be read back, and that the activity of a thread is described."""

import threading

from megatron_prime.observability import Metrics
from megatron_prime.observability.heartbeat import beat, begin_step, current, phase, thread_activity


def test_beats_are_counted_and_the_last_event_is_recorded():
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


def test_timed_metrics_set_the_phase():
    with Metrics().timed("policy"):
        assert current().phase == "policy"
    assert current().phase != "policy"


def test_a_waiting_thread_is_distinguished_from_a_working_one():
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
        # Event.wait is a Python function of the standard library whose innermost line calls lock.acquire().
        places = [thread_activity(thread.ident) for thread in threads]
        assert "in works" not in places[0].text
        assert not places[1].is_waiting
        assert "works" in places[1].text or "is_set" in places[1].text
    finally:
        event.set()
        ended.set()
    for thread in threads:
        thread.join()
    assert thread_activity(threads[0].ident).text == "the thread has ended"


def test_gpu_synchronization_counts_as_waiting_only_with_a_gpu(tmp_path):
    entered, lock = threading.Event(), threading.Lock()
    lock.acquire()

    class Tensor:
        """A tensor whose item() is a C function, so that the innermost Python line is the one that calls it."""

        item = lock.acquire

    path = tmp_path / "reads.py"
    path.write_text("def read(tensor, entered):\n    entered.set()\n    tensor.item()\n")
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)

    thread = threading.Thread(target=scope["read"], args=(Tensor, entered))
    thread.start()
    entered.wait()
    while "reads.py:3" not in thread_activity(thread.ident).text:
        pass
    assert not thread_activity(thread.ident).is_waiting
    assert thread_activity(thread.ident, is_cuda=True).is_waiting
    lock.release()
    thread.join()
