import dataclasses
import math

import pytest
import torch

from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn

PROMPT = Prompt(index=7, token_ids=(1, 2), answer="3", source="toy")


def rollout(*response_ids: int, outcome: float = 1.0) -> Rollout:
    logprobs = tuple(-0.5 * (index + 1) for index in range(len(response_ids)))
    return Rollout(PROMPT, 0, response_ids, logprobs, FinishReason.STOP, 4).with_outcome(outcome)


@pytest.fixture
def batch() -> RolloutBatch:
    return RolloutBatch.from_rollouts(
        [rollout(5, 6, 7), rollout(8, outcome=0.0)],
        group_ids=[3, 3],
        step_ids=[[0, 0, 1], [0]],
        stats={"num_groups_kept": 2.0},
    )


def test_with_outcome_returns_a_verified_copy():
    fresh = Rollout(PROMPT, 1, (5,), (-0.1,), FinishReason.LENGTH, 0)
    verified = fresh.with_outcome(0.25)
    assert math.isnan(fresh.outcome_reward)
    assert verified == dataclasses.replace(fresh, outcome_reward=0.25)


@pytest.mark.parametrize(("response_ids", "logprobs"), [((), ()), ((1, 2), (-0.1,)), ((1,), (-0.1, -0.2))])
def test_a_rollout_has_tokens_and_a_logprob_for_each(response_ids, logprobs):
    with pytest.raises(AssertionError):
        Rollout(PROMPT, 0, response_ids, logprobs, FinishReason.STOP, 0)


def test_records_are_frozen(batch):
    for record, name in ((PROMPT, "answer"), (rollout(1), "policy_version"), (batch, "stats")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)


def test_responses_are_padded_on_the_right(batch):
    assert batch.response_mask_BT.tolist() == [[True, True, True], [True, False, False]]
    assert batch.rollout_logprobs_BT.tolist() == [[-0.5, -1.0, -1.5], [-0.5, 0.0, 0.0]]
    assert batch.outcome_rewards_B.tolist() == [1.0, 0.0]
    assert batch.group_ids_B.tolist() == [3, 3]


def test_the_padding_repeats_the_last_step_id(batch):
    assert batch.step_ids_BT.tolist() == [[0, 0, 1], [0, 0, 0]]
    longer_first = RolloutBatch.from_rollouts([rollout(1, 2), rollout(1, 2, 3)], [0, 0], [[0, 4], [0, 1, 2]])
    assert longer_first.step_ids_BT is not None
    assert longer_first.step_ids_BT.tolist() == [[0, 4, 4], [0, 1, 2]]


def test_a_batch_counts_its_rows_and_tokens(batch):
    assert (batch.num_rows, batch.num_response_tokens) == (2, 4)
    assert int(batch.response_mask_BT.sum()) == batch.num_response_tokens


def test_tensors_have_the_documented_dtypes(batch):
    assert batch.response_mask_BT.dtype == torch.bool
    assert batch.rollout_logprobs_BT.dtype == batch.outcome_rewards_B.dtype == torch.float32
    assert (batch.group_ids_B.dtype, batch.step_ids_BT.dtype) == (torch.int64, torch.int32)


def test_without_steps_there_are_no_step_ids():
    assert RolloutBatch.from_rollouts([rollout(1)], [0]).step_ids_BT is None


def test_to_moves_every_tensor(batch):
    moved = batch.to(torch.device("meta"))
    tensors = [
        value
        for field in dataclasses.fields(moved)
        if isinstance(value := getattr(moved, field.name), torch.Tensor)
    ]
    assert len(tensors) == 6
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.rollouts == batch.rollouts
    assert moved.stats == batch.stats


def test_the_statistics_are_copied():
    stats = {"num_groups_kept": 1.0}
    batch = RolloutBatch.from_rollouts([rollout(1)], [0], stats=stats)
    stats["num_groups_kept"] = 9.0
    assert batch.stats == {"num_groups_kept": 1.0}


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one rollout"):
        RolloutBatch.from_rollouts([], [])


def test_finish_reasons_have_the_values_that_engines_report():
    assert [FinishReason(word) for word in ("stop", "length", "abort")] == list(FinishReason)


def test_trained_rows_excludes_masked_rows(batch):
    assert batch.trained_rows([1, 0]) == [1, 0]
    masked = dataclasses.replace(
        batch, is_trained_B=torch.tensor([False, True]), outcome_penalties_B=torch.tensor([-0.5, 0.0])
    )
    assert masked.trained_rows([1, 0]) == [1]
    moved = masked.to(torch.device("meta"))
    assert moved.is_trained_B.device.type == moved.outcome_penalties_B.device.type == "meta"


def test_turns_tell_the_tokens_of_the_policy_from_the_replies():
    """Two turns with a reply of two tokens between them, and one beside it of a single turn."""
    turns = (Turn(policy_end=2, end=4, reward=-0.5), Turn(policy_end=5, end=5))
    several = dataclasses.replace(rollout(1, 2, 3, 4, 5), turns=turns)
    assert several.policy_mask == [True, True, False, False, True]
    batch = RolloutBatch.from_rollouts([several, rollout(8, 9)], [0, 0])
    assert batch.policy_mask_BT.tolist() == [several.policy_mask, [True, True, False, False, False]]
    assert batch.turn_ids_BT is not None and batch.turn_rewards_BT is not None
    assert batch.turn_ids_BT.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert batch.turn_rewards_BT.tolist() == [[0, -0.5, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert several.policy_spans == [(0, 2), (4, 5)] and rollout(8, 9).policy_spans == [(0, 2)]
    assert batch.scored_mask_BT("all").equal(batch.response_mask_BT)
    assert batch.scored_mask_BT("policy").equal(batch.policy_mask_BT)
    assert batch.unit_ids_BT("turn") is batch.turn_ids_BT and batch.unit_ids_BT("step") is None


def test_the_tokens_of_a_response_are_counted_by_the_version_that_sampled_them():
    whole = dataclasses.replace(rollout(1, 2, 3, 4, 5), policy_version=3)
    assert whole.tokens_by_version == {3: 5}
    parts = dataclasses.replace(whole, version_spans=((3, 0, 1), (4, 1, 3), (6, 3, 5)))
    assert parts.tokens_by_version == {3: 1, 4: 2, 6: 2}
    with_reply = dataclasses.replace(parts, turns=(Turn(policy_end=2, end=4), Turn(policy_end=5, end=5)))
    assert +with_reply.tokens_by_version == {3: 1, 4: 1, 6: 1}


def test_without_an_environment_the_policy_writes_everything(batch):
    assert batch.policy_mask_BT.equal(batch.response_mask_BT)
    assert batch.turn_ids_BT is None and batch.turn_rewards_BT is None
    ids_BT = batch.unit_ids_BT("turn")
    assert ids_BT is not None and not ids_BT.any()
    # One tensor, so that it is moved to the device once.
    assert batch.policy_mask_BT is batch.response_mask_BT
    moved = batch.to(torch.device("meta"))
    assert moved.policy_mask_BT is moved.response_mask_BT


@pytest.mark.parametrize("turns", [(Turn(0, 2),), (Turn(2, 1), Turn(2, 2)), (Turn(1, 1),)])
def test_turns_cover_a_response_and_begin_with_the_policy(turns):
    with pytest.raises(AssertionError):
        dataclasses.replace(rollout(1, 2), turns=turns)
