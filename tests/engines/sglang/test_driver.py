"""One rank works; all ranks get the result or the error, and help to resync servers."""

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from megatron_prime.engines.sglang import driver as sglang_driver
from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.ranks import Ranks
from tests.support.rollout_doubles import run_on_ranks


@pytest.fixture(autouse=True)
def quick_heartbeat(monkeypatch):
    monkeypatch.setattr(sglang_driver, "HEARTBEAT_S", 0.05)


def run_drivers(scenario, resync=lambda driver, server: None, num_ranks=3):
    """scenario(driver) on every rank; the results by rank."""

    def on_rank(ranks):
        driver = Driver(ranks, lambda server: resync(driver, server))
        try:
            return scenario(driver)
        finally:
            driver.close()
            driver.close()

    return run_on_ranks(num_ranks, on_rank)


def test_the_result_reaches_every_rank_after_many_heartbeats():
    async def work():
        await asyncio.sleep(0.3)
        return [1, 2]

    assert run_drivers(lambda driver: driver.run(work)) == [[1, 2]] * 3


def test_a_lone_rank_needs_no_partner():
    async def work():
        return 5

    driver = Driver(Ranks(), lambda server: None)
    assert driver.run(work) == 5
    driver.close()


@pytest.mark.parametrize(
    ("raised", "others_see"),
    [
        (ValueError("bad"), ValueError),
        (ServerRefusedError("no", 400), ServerRefusedError),
        (KeyError("a bug"), EngineError),
    ],
)
def test_a_fault_is_raised_on_every_rank(raised, others_see):
    async def work():
        raise raised

    def scenario(driver):
        try:
            driver.run(work)
        except Exception as error:  # noqa: BLE001
            return type(error)
        return None

    assert run_drivers(scenario) == [type(raised), others_see, others_see]


def test_a_resync_that_was_given_up_is_not_carried_out_later():
    """By then the trainer has other weights than the servers."""
    helped = []

    def scenario(driver):
        async def give_up():
            asking = asyncio.ensure_future(driver.ask_for_resync(1))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        async def work():
            await asyncio.sleep(0.05)
            return 5

        if driver.loop_thread is not None:
            driver.loop_thread.submit(give_up()).result()
        return driver.run(work)

    found = run_drivers(scenario, resync=lambda driver, server: helped.append(server))
    assert found == [5, 5, 5] and not helped


def test_all_ranks_help_to_resync_while_the_work_goes_on():
    helped = []

    def resync(driver, server):
        async def deliver():
            return server * 10

        helped.append((driver.is_driver, driver.run(deliver)))  # resyncs may run work of their own

    def scenario(driver):
        async def work():
            await asyncio.gather(driver.ask_for_resync(4), driver.ask_for_resync(5))
            return "done"

        return driver.run(work)

    assert run_drivers(scenario, resync) == ["done"] * 3
    assert sorted(helped) == sorted([(False, 40), (False, 50)] * 2 + [(True, 40), (True, 50)])


def test_a_server_that_dies_during_its_resync_is_resynced_again():
    calls = []

    def resync(driver, server):
        calls.append(server)
        if driver.is_driver and len([1 for call in calls if call == server]) <= 3:
            raise ServerUnreachableError("died")

    def scenario(driver):
        async def work():
            for _ in range(10):
                try:
                    return await driver.ask_for_resync(0)
                except ServerUnreachableError:
                    await asyncio.sleep(0)
            raise AssertionError

        return driver.run(work)

    assert run_drivers(scenario, resync) == [None] * 3


def test_a_fault_of_a_resync_on_any_rank_ends_the_work_everywhere():
    def resync(driver, server):
        if not driver.is_driver:
            raise EngineError("rank lost its weights")

    def scenario(driver):
        async def work():
            await driver.ask_for_resync(0)

        try:
            driver.run(work)
        except EngineError as error:
            return "rank lost its weights" in str(error)
        return False

    assert run_drivers(scenario, resync) == [True] * 3


def test_closing_cancels_the_work_and_lets_it_clean_up():
    freed, works = [], threading.Event()

    async def work():
        works.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            freed.append(True)

    driver = Driver(Ranks(), lambda server: None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(driver.run, work)
        assert works.wait(10)
        driver.close()
        assert freed
        with pytest.raises(CancelledError):
            running.result(10)


def test_a_closed_driver_refuses_work_instead_of_waiting_for_it():
    async def work():
        raise AssertionError("a closed loop runs nothing")

    driver = Driver(Ranks(), lambda server: None)
    driver.close()
    with pytest.raises(EngineError, match="closed"):
        driver.run(work)
