"""The budgets of turns and responses, and how a response ends."""

import math
from dataclasses import replace

import pytest
import torch

from megatron_prime.engines.conversation import Conversation, SampledTurn
from megatron_prime.rollout.episode import Reply
from megatron_prime.types import FinishReason, Prompt, SamplingParams, Turn

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT
PROMPT = Prompt(4, (7, 8), "9")
PARAMS = SamplingParams(10, max_turns=3, max_turn_tokens=4)


def sampled(*token_ids, reason=STOP, version=1):
    spans = ((version, 0, len(token_ids)),)
    return SampledTurn(token_ids, [-float(token) for token in token_ids], reason, spans)


def converse(params, *parts):
    """The conversation after turns, each followed by its reply."""
    conversation = Conversation(PROMPT, params)
    for part in parts:
        if isinstance(part, SampledTurn):
            conversation.add_turn(part)
        else:
            conversation.add_reply(part)
    return conversation


def test_a_response_holds_turns_and_replies_one_after_another():
    parts = [sampled(1, 2), Reply((3,), reward=0.5), sampled(4), Reply((5, 6)), sampled(7)]
    conversation = converse(PARAMS, *parts)
    assert conversation.input_ids == (7, 8, 1, 2, 3, 4, 5, 6, 7)
    conversation.add_reply(Reply(is_done=True, reward=-1.0, outcome=0.75, reason="so"))
    rollout = conversation.rollout(2, policy_version=99)
    assert tuple(rollout.response_ids) == (1, 2, 3, 4, 5, 6, 7)
    assert tuple(rollout.rollout_logprobs) == (-1.0, -2.0, 0.0, -4.0, 0.0, 0.0, -7.0)
    assert rollout.turns == (Turn(2, 3, 0.5), Turn(4, 6), Turn(7, 7, -1.0))
    assert rollout.policy_mask == [True, True, False, True, False, False, True]
    assert (rollout.prompt, rollout.sample_index, rollout.policy_version) == (PROMPT, 2, 1)
    assert (rollout.finish_reason, rollout.outcome_reward, rollout.reason) == (STOP, 0.75, "so")
    assert rollout.is_judged and rollout.version_spans == ()


@pytest.mark.parametrize(
    ("params", "parts", "budget"),
    [
        (PARAMS, [], 4),
        (replace(PARAMS, max_turn_tokens=None), [], 10),
        (replace(PARAMS, max_turn_tokens=11), [], 10),
        (PARAMS, [sampled(1, 2), Reply((3,) * 5)], 3),
        (PARAMS, [sampled(1, 2), Reply((3,) * 7)], 1),  # one token is left
        (PARAMS, [sampled(1, 2), Reply(())], 4),  # an empty reply: the policy goes on
    ],
)
def test_the_budget_of_the_next_turn(params, parts, budget):
    conversation = converse(params, *parts)
    assert conversation.finish_reason is None
    assert conversation.turn_budget == budget


@pytest.mark.parametrize(
    ("params", "parts", "reason", "length"),
    [
        (PARAMS, [sampled(1, 2), Reply(is_done=True)], STOP, 2),
        (PARAMS, [sampled(1, 2), Reply((3,) * 7), sampled(1), Reply(is_done=True)], STOP, 10),
        (PARAMS, [sampled(1, 2), Reply((3,) * 8)], LENGTH, 2),  # no token would fit behind the reply
        (PARAMS, [sampled(1, 2), Reply((3,) * 9)], LENGTH, 2),  # the reply is longer than the rest
        (PARAMS, [sampled(1), Reply((3,)), sampled(1), Reply((3,)), sampled(1), Reply((3,))], LENGTH, 5),
        (replace(PARAMS, max_turns=1), [sampled(1), Reply((3,))], LENGTH, 1),
        (replace(PARAMS, max_turns=1), [sampled(1), Reply(is_done=True)], STOP, 1),
        (PARAMS, [sampled(1, 2, 3, 4, reason=LENGTH), Reply((3,))], LENGTH, 4),
        # The environment may judge a turn that was cut, but not call it complete.
        (PARAMS, [sampled(1, 2, 3, 4, reason=LENGTH), Reply(is_done=True, outcome=1.0)], LENGTH, 4),
        # A stop token that uses up the budget ends the turn, but leaves no room for another.
        (replace(PARAMS, max_response_tokens=2), [sampled(1, 2), Reply(())], LENGTH, 2),
    ],
)
def test_how_a_response_ends(params, parts, reason, length):
    conversation = converse(params, *parts)
    assert conversation.finish_reason is reason
    rollout = conversation.rollout(0, 1)
    assert len(rollout.response_ids) == length <= params.max_response_tokens
    assert rollout.is_judged == (parts[-1].outcome is not None)
    assert rollout.policy_mask[-1], "nothing of the environment follows the last decision"


def test_a_turn_without_an_environment_is_the_response():
    experts = torch.zeros(1)
    for reason in FinishReason:
        conversation = converse(PARAMS, replace(sampled(1, 2, reason=reason), routed_experts=experts))
        conversation.end()
        rollout = conversation.rollout(0, 1)
        assert (tuple(rollout.response_ids), rollout.turns, rollout.finish_reason) == ((1, 2), (), reason)
        assert rollout.routed_experts is experts and not rollout.is_judged
        assert math.isnan(rollout.outcome_reward)


def test_one_turn_is_only_recorded_where_it_says_something():
    ended = [converse(PARAMS, sampled(1), Reply(is_done=True, reward=reward)) for reward in (0.0, 0.5)]
    assert [each.rollout(0, 1).turns for each in ended] == [(), (Turn(1, 1, 0.5),)]


@pytest.mark.parametrize(
    ("versions", "spans"),
    [
        ((1, 1, 1), ()),
        ((1, 1, 2), ((1, 0, 4), (2, 4, 5))),
        ((1, 2, 2), ((1, 0, 2), (2, 2, 5))),
        ((1, 2, 1), ((1, 0, 2), (2, 2, 4), (1, 4, 5))),
    ],
)
def test_spans_of_versions_are_joined_over_turns(versions, spans):
    first, second, third = versions
    parts = [sampled(1, version=first), Reply((2,)), sampled(3, version=second), Reply((4,))]
    conversation = converse(PARAMS, *parts, sampled(5, version=third), Reply(is_done=True))
    assert conversation.rollout(0, 9).version_spans == spans
    assert conversation.rollout(0, 9).policy_version == 1
    assert conversation.versions == set(versions)


def test_a_turn_that_a_sync_interrupted_keeps_its_spans():
    turn = SampledTurn((3, 4), (-1.0, -1.0), STOP, ((1, 0, 1), (2, 1, 2)))
    conversation = converse(PARAMS, sampled(1), Reply((2,)), turn, Reply(is_done=True))
    assert conversation.rollout(0, 9).version_spans == ((1, 0, 3), (2, 3, 4))
    assert turn.versions == {1, 2}


@pytest.mark.parametrize(
    ("parts", "tokens", "version"),
    [([], (8,), 6), ([sampled(1, 2)], (1, 2), 1), ([sampled(1, 2), Reply((3,))], (1, 2, 3), 1)],
)
def test_a_failed_environment_leaves_no_outcome(parts, tokens, version):
    conversation = converse(PARAMS, *parts)
    conversation.fail("it hangs")
    rollout = conversation.rollout(0, policy_version=6)
    assert (rollout.finish_reason, rollout.reason, rollout.is_judged) == (ABORT, "it hangs", True)
    assert math.isnan(rollout.outcome_reward)
    assert (tuple(rollout.response_ids), rollout.policy_version) == (tokens, version)
