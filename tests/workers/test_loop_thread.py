"""An event loop in a thread."""

import asyncio
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from megatron_prime.workers.loop_thread import LoopThread


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


def test_threads_share_a_loop():
    loop = LoopThread("the test")
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda number: loop.submit(double(number)).result(), range(20))) == [
            2 * number for number in range(20)
        ]
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="the test is closed"):
        loop.submit(double(1))


def test_closing_cancels_what_runs_and_waits_until_it_has_freed_what_it_holds():
    begun, freed = [], []

    async def work():
        try:
            begun.append(True)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            freed.append(True)

    loop = LoopThread("the test")
    running = loop.submit(work())
    loop.submit(asyncio.sleep(0)).result()
    loop.close()
    assert begun and freed
    with pytest.raises(CancelledError):
        running.result(10)


def test_work_that_is_submitted_while_the_loop_closes_ends():
    """Whatever the order of the threads: a future of a loop that has stopped would never be done."""
    for _ in range(20):
        loop = LoopThread("the test", LookupError)
        outcomes = []

        def submit(loop=loop, outcomes=outcomes):
            while True:
                try:
                    outcomes.append(loop.submit(asyncio.sleep(60)))
                except LookupError:
                    return

        with ThreadPoolExecutor(1) as pool:
            submitting = pool.submit(submit)
            loop.close()
            submitting.result(10)
        assert all(outcome.done() for outcome in outcomes)
