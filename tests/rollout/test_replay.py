import math

import pytest

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.observability.rollout_log import FileInfo, step_path, write_rollouts
from megatron_prime.rollout.collector import BatchSize, NoBatch
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.replay import LoggedGroups, ReplayCollector
from megatron_prime.types import FinishReason, SamplingParams, Turn
from tests.support.logged_rollouts import logged_response
from tests.support.rollout_doubles import CountingStream


def write(folder, step, outcomes, num_sampled):
    """Write a log whose group i has these outcomes, of a step that sampled so many groups."""
    rows = [
        logged_response(group, sample, outcome_reward=outcome)
        for group, pair in enumerate(outcomes)
        for sample, outcome in enumerate(pair)
    ]
    info = FileInfo(step, num_groups=len(outcomes), num_groups_sampled=num_sampled)
    write_rollouts(step_path(folder, step), info, rows)


def collector(folder, most_tokens=(3, 3), **filters):
    stream = PromptQueue(CountingStream())
    made = ReplayCollector(None, stream, None, SamplingParams(3), FilterConfig(**filters), BatchSize(2, 2))
    made.logged = LoggedGroups(folder, most_tokens)
    return made, stream


def test_a_batch_is_made_of_the_logged_groups_with_their_outcomes(tmp_path):
    write(tmp_path, 1, [(0, 1), (1, 1), (1, 0), (0, 1)], 4)
    replay, stream = collector(tmp_path)
    batch = replay.collect(0)
    assert [rollout.prompt.index for rollout in batch.rollouts] == [7, 7, 9, 9]
    assert batch.outcome_rewards_B.tolist() == [0, 1, 1, 0]
    assert stream.state_dict() == {"num_taken": 4}, "the prompts move as in the run that sampled"
    assert batch.stats["num_prompts_sampled"] == 3, (
        "the group behind the full batch is of an earlier version's log"
    )
    first = batch.rollouts[1]
    expected = logged_response(0, 1)
    assert first.response_ids == tuple(expected["response_token_ids"])
    assert first.rollout_logprobs == pytest.approx(expected["rollout_logprobs"].tolist())
    assert first.finish_reason is FinishReason.STOP


def test_turns_of_a_logged_response_are_read_back(tmp_path):
    """Two tokens of the policy and a reply; and two turns of a token each, of which the second has a reward."""
    mine, theirs = [True, True, False], [True, False, True]
    rows = [
        logged_response(0, 0, policy_mask=mine, turn_ends=[3], turn_rewards=[0.0]),
        logged_response(0, 1, policy_mask=theirs, turn_ends=[2, 3], turn_rewards=[0.0, -0.5]),
    ]
    info = FileInfo(1, num_groups=1, num_groups_sampled=1)
    write_rollouts(step_path(tmp_path, 1), info, rows)
    batch = collector(tmp_path)[0].collect(0)
    assert batch.policy_mask_BT.tolist() == [mine, theirs]
    assert batch.turn_rewards_BT.tolist() == [[0, 0, 0], [0, 0, -0.5]]
    assert [rollout.turns for rollout in batch.rollouts] == [(Turn(2, 3),), (Turn(1, 2), Turn(3, 3, -0.5))]


def test_a_log_of_some_groups_ends_without_asking_for_more(tmp_path):
    write(tmp_path, 1, [(1, 0)], 6)
    replay, stream = collector(tmp_path)
    assert len(replay.collect(0).rollouts) == 2
    assert stream.state_dict() == {"num_taken": 6}


def test_another_filter_decides_anew(tmp_path):
    write(tmp_path, 1, [(1, 1), (None, 0)], 2)
    replay, _ = collector(tmp_path)
    assert isinstance(replay.collect(0), NoBatch)
    assert math.isnan(replay.logged.sampled(0)[0][1][0].outcome_reward)
    replay, _ = collector(tmp_path, enabled=False)
    assert [rollout.prompt.index for rollout in replay.collect(0).rollouts] == [7, 7]


def test_a_missing_step_and_too_long_sequences_are_refused(tmp_path):
    write(tmp_path, 1, [(1, 0)], 1)
    with pytest.raises(ValueError, match=r"step-00000002\.parquet does not exist"):
        collector(tmp_path)[0].collect(1)
    for most in ((2, 3), (3, 2)):
        with pytest.raises(ValueError, match=r"prompt of 3 and a response of 3 tokens.*raise them"):
            collector(tmp_path, most)[0].collect(0)
