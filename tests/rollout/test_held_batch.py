"""A batch that a checkpoint holds comes back bit for bit, with all that the logs of its step need."""

import json
import math
from array import array
from dataclasses import fields, replace

import pytest
import torch

from megatron_prime.rollout.collector import NoBatch
from megatron_prime.rollout.held_batch import TENSORS, TEXT, HeldBatch, read_held, write_held
from megatron_prime.rollout.sampled_groups import KEPT, SampledGroup
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn


def rollout(prompt: Prompt, sample: int, tokens: tuple[int, ...], **changes) -> Rollout:
    return Rollout(
        prompt=prompt,
        sample_index=sample,
        response_ids=array("i", tokens),
        rollout_logprobs=array("f", [-math.pi / (1 + token) for token in tokens]),
        finish_reason=FinishReason.STOP,
        policy_version=4,
        outcome_reward=1 / 3,
        reason="ünïcode",
        **changes,
    )


def held_batch() -> HeldBatch:
    first, second = Prompt(3, (1, 2), "4", "gsm", "math", "[]", '{"a": 1}'), Prompt(9, (5,), "0")
    kept = [
        rollout(first, 0, (7, 8, 9), turns=(Turn(1, 2, 0.25), Turn(3, 3)), is_judged=True),
        rollout(first, 1, (7,), version_spans=((3, 0, 1),), num_failed_episodes=2, environment_s=0.1),
    ]
    kept[1] = replace(kept[1], routed_experts=torch.tensor([[[1, 2]], [[0, 3]]], dtype=torch.int16))
    dropped = [replace(rollout(second, 0, (4, 4)), outcome_reward=math.nan, finish_reason=FinishReason.ABORT)]
    batch = RolloutBatch.from_rollouts(kept, [0, 0], stats={"accuracy_batch": 0.1, "other": math.nan})
    batch = replace(batch, outcome_penalties_B=torch.tensor([-0.5, 0.0]), throughput={"groups_aborted": 2.0})
    groups = [SampledGroup(dropped, "too_hard"), SampledGroup(kept, KEPT, batch_index=0)]
    records = [(9, math.nan, "dropped_too_hard"), (3, 1 / 3, "kept")]
    return HeldBatch(12, batch, records, groups, {"offset": 2}, {"keep_rate": None}, {"filter": {"a": 1}})


def assert_equal_groups(one: HeldBatch, other: HeldBatch) -> None:
    # NaN differs from itself, and its text does not.
    assert str(one.groups) == str(other.groups)
    for mine, theirs in zip(one.groups, other.groups, strict=True):
        for left, right in zip(mine.rollouts, theirs.rollouts, strict=True):
            assert left.rollout_logprobs == right.rollout_logprobs
            assert left.environment_s == right.environment_s
            assert (left.routed_experts is None) == (right.routed_experts is None)
            if left.routed_experts is not None:
                assert right.routed_experts is not None
                assert torch.equal(left.routed_experts, right.routed_experts)
                assert left.routed_experts.dtype == right.routed_experts.dtype


def test_a_batch_comes_back_bit_for_bit(tmp_path):
    held = held_batch()
    write_held(tmp_path, held)
    read = read_held(tmp_path)
    assert read is not None
    assert_equal_groups(held, read)
    for name in ("step_index", "prompts_before", "collector_before", "settings"):
        assert getattr(read, name) == getattr(held, name)
    assert str(read.records) == str(held.records)
    assert isinstance(read.result, RolloutBatch) and isinstance(held.result, RolloutBatch)
    assert read.result.rollouts == held.result.rollouts
    assert read.result.rollouts[0] is read.groups[1].rollouts[0]
    assert str(read.result.stats) == str(held.result.stats)
    assert read.result.throughput == held.result.throughput == {"groups_aborted": 2.0}
    for each in fields(RolloutBatch):
        mine, theirs = getattr(held.result, each.name), getattr(read.result, each.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), each.name
        elif each.name not in ("rollouts", "stats", "throughput"):
            assert theirs is mine is None, each.name
    again = tmp_path / "again"
    again.mkdir()
    write_held(again, read)
    for name in (TEXT, TENSORS):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_masks_that_were_one_tensor_are_one_again(tmp_path):
    held = held_batch()
    alone = [replace(each, turns=()) for each in held.groups[1].rollouts]
    batch = RolloutBatch.from_rollouts(alone, [0, 0])
    assert batch.policy_mask_BT is batch.response_mask_BT
    write_held(tmp_path, replace(held, result=batch, groups=[SampledGroup(alone, KEPT, batch_index=0)]))
    read = read_held(tmp_path)
    assert read is not None and isinstance(read.result, RolloutBatch)
    assert read.result.policy_mask_BT is read.result.response_mask_BT


def test_a_step_without_a_batch_is_held_too(tmp_path):
    held = held_batch()
    nothing = NoBatch({"num_groups_kept": 0.0}, "too few")
    write_held(tmp_path, replace(held, result=nothing, groups=held.groups[:1]))
    read = read_held(tmp_path)
    assert read is not None and read.result == nothing
    assert str(read.groups) == str(held.groups[:1])


def test_a_checkpoint_without_a_batch_holds_none(tmp_path):
    assert read_held(tmp_path) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def without(name):
    def change(folder):
        text = json.loads((folder / TEXT).read_text())
        del text[name]
        (folder / TEXT).write_text(json.dumps(text))

    return change


DAMAGES = {
    "no tensors": lambda folder: (folder / TENSORS).unlink(),
    "half of the tensors": lambda folder: cut(folder / TENSORS),
    "half of the text": lambda folder: cut(folder / TEXT),
    "no groups": without("groups"),
    "no step": without("step_index"),
    "another format": lambda folder: (folder / TEXT).write_text('{"format": 2}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_the_file(damage, tmp_path):
    write_held(tmp_path, held_batch())
    DAMAGES[damage](tmp_path)
    with pytest.raises(ValueError, match=r"held_batch\.json cannot be read"):
        read_held(tmp_path)
