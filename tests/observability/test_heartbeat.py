"""Checks that recorded events can be read back, and that the activity of a thread is described."""

import contextlib
import linecache
import os
import queue
import sys
import threading
import time

import pytest

from megatron_prime.observability import Metrics
from megatron_prime.observability.heartbeat import (
    beat,
    begin_step,
    current,
    is_own_code,
    phase,
    thread_activity,
)


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


BLOCKS = """
class Tensor:
    def isfinite(self): return self
    def all(self): return self
    def __gt__(self, other): return self

def run(lock, opened, queue, event):
    Tensor.__float__ = Tensor.__bool__ = Tensor.__int__ = Tensor.item = layer = lock.acquire
    tensor, work = Tensor(), type("Work", (), {{"wait": lock.acquire}})
    {line}  # HERE
"""
"""A function that blocks in a C function at HERE until `lock` is released, or its other arguments let it go on."""
TORCH = "site-packages/torch/"
GPU, RANKS, HOST = "waits for its GPU if it stays", "waits for other ranks", "does something else"


@pytest.mark.parametrize(
    ("line", "file", "expected"),
    [
        ("loss = float(tensor)", "megatron_prime/training/losses.py", GPU),
        ("is_sound = bool(tensor.isfinite().all())", "megatron_prime/training/health/guards.py", GPU),
        ("if tensor > 0: pass", "site-packages/megatron/core/distributed/finalize_model_grads.py", GPU),
        ("layer()  # the launch queue is full", "megatron_prime/models/forward.py", GPU),
        ("layer()  # the launch queue is full", "site-packages/megatron/core/transformer/mlp.py", GPU),
        ("layer()  # the backward pass", f"{TORCH}autograd/graph.py", GPU),
        ("number = tensor.item()", "megatron_prime/training/losses.py", RANKS),
        ("work.wait()", "megatron_prime/resharding/transport.py", RANKS),
        ("layer()", f"{TORCH}distributed/distributed_c10d.py", RANKS),
        ("lock.acquire()", "megatron_prime/rollout/collector.py", HOST),
        ("opened.read(1)", "megatron_prime/data/files.py", HOST),
        ("queue.get()", "megatron_prime/engines/sglang/driver.py", HOST),
        ("event.wait()", "megatron_prime/engines/sglang/driver.py", HOST),
        ("import time; time.sleep(1)", "megatron_prime/engines/sglang/nodes.py", HOST),
    ],
)
def test_what_a_blocked_thread_of_a_rank_with_a_gpu_waits_for(tmp_path, line, file, expected):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(BLOCKS.format(line=line))
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    lock, event = threading.Lock(), threading.Event()
    lock.acquire()
    waiting: queue.Queue[int] = queue.Queue()
    reading, writing = os.pipe()
    with open(reading) as opened:
        thread = threading.Thread(target=quietly, args=(scope["run"], lock, opened, waiting, event))
        thread.start()
        try:
            stay = place_of(thread, path)
            found = thread_activity(thread.ident, is_cuda=True)
            assert found.place == stay.place
            kinds = {(True, False): RANKS, (False, True): GPU, (False, False): HOST}
            assert kinds[found.is_waiting, found.may_wait] == expected, found.text
            assert not thread_activity(thread.ident).may_wait, "there is no GPU to wait for"
        finally:
            lock.release()
            event.set()
            waiting.put(1)
            os.write(writing, b"x")
            os.close(writing)
            thread.join()


def quietly(function, *arguments) -> None:
    """Run a function; when its lock is released, a number that is none is a TypeError."""
    with contextlib.suppress(TypeError):
        function(*arguments)


def place_of(thread, path):
    """Wait until a thread stays in one place, with a line of a file on its stack, and return it."""
    while True:
        first = thread_activity(thread.ident, is_cuda=True)
        time.sleep(0.05)
        frame = sys._current_frames()[thread.ident]
        while frame is not None and frame.f_code.co_filename != str(path):
            frame = frame.f_back
        is_there = frame is not None and "HERE" in linecache.getline(str(path), frame.f_lineno)
        if is_there and thread_activity(thread.ident, is_cuda=True).place == first.place:
            return first


@pytest.mark.parametrize(
    ("file", "is_own"),
    [
        ("/opt/venv/lib/python3.11/site-packages/megatron_prime/training/loop.py", True),
        ("/home/user/megatron_prime/megatron_prime/training/loop.py", True),
        ("/home/user/megatron_prime/.venv/lib/python3.11/site-packages/torch/_tensor.py", False),
        ("/opt/venv/lib/python3.11/site-packages/megatron/core/utils.py", False),
    ],
)
def test_a_virtual_environment_in_the_checkout_is_no_code_of_this_package(file, is_own):
    assert is_own_code(file) is is_own
