"""Prompts can be looked at without taking them, and the position is that of the prompts taken."""

import pytest

from megatron_prime.data.ordering import ResumableOrder
from megatron_prime.rollout.prompt_queue import PromptQueue
from tests.support.rollout_doubles import CountingStream


def test_looking_ahead_takes_nothing():
    queue = PromptQueue(CountingStream())
    assert [prompt.index for prompt in queue.ahead(2, 3)] == [2, 3, 4]
    assert queue.state_dict() == {"num_taken": 0}
    queue.take(2)
    assert queue.state_dict() == {"num_taken": 2}
    assert [prompt.index for prompt in queue.ahead(0, 4)] == [2, 3, 4, 5]
    queue.take(6)
    assert [prompt.index for prompt in queue.ahead(0, 1)] == [8]


def test_a_resumed_queue_goes_on_behind_the_prompts_taken_also_over_the_end_of_an_epoch():
    def order():
        return ResumableOrder(range(5), "data", seed=1, shuffle=True)

    queue, items = PromptQueue(order()), order().next(30)
    for taken in (0, 3, 2, 1, 7):
        queue.ahead(0, 12)
        queue.take(taken)
        resumed = PromptQueue(order())
        resumed.load_state_dict(queue.state_dict())
        assert resumed.ahead(0, 8) == queue.ahead(0, 8)
    assert queue.ahead(0, 3) == items[13:16]


def test_a_stream_that_ends_is_reported():
    stream = CountingStream()
    stream.next = lambda num_prompts: []
    with pytest.raises(RuntimeError, match="0 prompts instead of 1"):
        PromptQueue(stream).ahead(0, 1)
