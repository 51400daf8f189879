"""Groups go to the server with the fewest outstanding tokens, within its limit, and never to one that is down."""

import asyncio

import pytest

from megatron_prime.engines.sglang.balancer import Balancer


def test_the_server_with_fewest_outstanding_tokens_is_taken():
    async def scenario():
        balancer = Balancer(2, concurrency=10)
        first = await balancer.take([100])
        second = await balancer.take([10])
        third = await balancer.take([10])
        balancer.give_back(first, 100)
        fourth = await balancer.take([1])
        return [first, second, third, fourth], balancer.requests_taken

    assert asyncio.run(scenario()) == ([0, 1, 1, 0], [2, 2])


def test_take_waits_for_free_capacity():
    async def scenario():
        balancer = Balancer(1, concurrency=2)
        await balancer.take([5, 5, 5])  # a group may overshoot
        waiting = asyncio.ensure_future(balancer.take([5]))
        states = []
        for _ in range(3):
            await asyncio.sleep(0)
            states.append(waiting.done())
            balancer.give_back(0, 5)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return states, await asyncio.wait_for(waiting, 1)

    assert asyncio.run(scenario()) == ([False, False, True], 0)


def test_a_server_that_is_down_gets_nothing_until_it_is_up():
    async def scenario():
        balancer = Balancer(2, concurrency=4)
        balancer.set_up(0, False)
        taken = [await balancer.take([1]) for _ in range(4)]
        waiting = asyncio.ensure_future(balancer.take([1]))
        await asyncio.sleep(0.01)
        assert not waiting.done() and not balancer.is_up(0)
        balancer.set_up(0, True)
        return taken, await asyncio.wait_for(waiting, 1)

    assert asyncio.run(scenario()) == ([1, 1, 1, 1], 0)


def test_a_waiter_that_is_cancelled_leaves_its_place_to_the_next():
    async def scenario():
        balancer = Balancer(1, concurrency=1)
        await balancer.take([1])
        waiters = [asyncio.ensure_future(balancer.take([1])) for _ in range(2)]
        await asyncio.sleep(0.01)
        waiters[0].cancel()
        balancer.give_back(0, 1)
        return await asyncio.wait_for(waiters[1], 1)

    assert asyncio.run(scenario()) == 0


def test_groups_begin_in_the_order_of_their_calls_and_those_of_a_newer_stream_before():
    async def scenario():
        balancer, begun = Balancer(1, concurrency=1), []

        async def group(name, stream):
            server = await balancer.take([1], stream)
            begun.append(name)
            await asyncio.sleep(0)
            balancer.give_back(server, 1)

        groups = [group(name, stream) for name, stream in (("a", 1), ("b", 1), ("x", 2), ("c", 1), ("y", 2))]
        await asyncio.wait_for(asyncio.gather(*groups), 1)
        return "".join(begun), balancer._loads[0]

    begun, load = asyncio.run(scenario())
    assert begun == "axybc" and (load.num_requests, load.num_tokens) == (0, 0)


def test_nothing_begins_while_it_is_held_and_its_servers_become_idle():
    async def scenario():
        balancer = Balancer(1, concurrency=2)
        await balancer.take([1])
        balancer.hold()
        idle = asyncio.ensure_future(balancer.wait_until_idle())
        waiting = [asyncio.ensure_future(balancer.take([1])) for _ in range(2)]
        await asyncio.sleep(0)
        states = [idle.done()]
        balancer.give_back(0, 1)
        await asyncio.wait_for(idle, 1)
        states += [task.done() for task in waiting]
        balancer.release()
        waiting[1].cancel()  # It has a server already, and gives it back.
        assert await waiting[0] == 0
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        return states, balancer._loads[0].num_requests

    assert asyncio.run(scenario()) == ([False, False, False], 1)


def test_sizes_must_be_positive():
    for arguments in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="positive"):
            Balancer(*arguments)
