import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.implicit_reward import (
    log_ratio_BT,
    process_rewards_BT,
    reward_positions,
    sequence_scores_B,
)
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.types import scored_tokens_BT
from tests.algorithm.dialogues import SCORED, Dialogues
from tests.algorithm.oracle import Batch

BETA = 0.05


def steps_of(batch, seed=0):
    """Non-decreasing step numbers with gaps, as lists, and padded with a smaller number."""
    rows = [[int(v > 0.3) * 2 for v in row] for row in batch.noise(seed)]
    steps = [[sum(row[: t + 1]) for t in range(len(row))] for row in rows]
    return steps, batch.padded(steps, padding=-5).long()


def expected_rewards(q, granularity, steps=None, scale=BETA):
    """Token rewards summed up to the last token of each step, or of the response."""
    result = []
    for i, row in enumerate(q):
        total, out = 0.0, []
        for t, value in enumerate(row):
            total += scale * value
            last = t == len(row) - 1
            ends = (
                granularity == "token" or last or (granularity == "step" and steps[i][t + 1] != steps[i][t])
            )
            out.append(total if ends else 0.0)
            total = 0.0 if ends else total
        result.append(out)
    return result


def logprobs(batch, seed=0):
    prm, ref = batch.noise(seed + 1), batch.noise(seed + 2)
    return prm, ref, [[p - r for p, r in zip(a, b, strict=True)] for a, b in zip(prm, ref, strict=True)]


@pytest.mark.parametrize("granularity", ["token", "step", "whole"])
@pytest.mark.parametrize("reward_scale", ["beta", "raw"])
@pytest.mark.parametrize("seed", range(4))
def test_rewards_match_equation_3(granularity, reward_scale, seed):
    batch = Batch(seed, extra_padding=seed % 2)
    prm, ref, q = logprobs(batch)
    steps, step_ids_BT = steps_of(batch)
    result_BT = process_rewards_BT(
        batch.padded(prm),
        batch.padded(ref),
        batch.mask_BT,
        PRMConfig(beta=BETA, granularity=granularity, reward_scale=reward_scale),
        step_ids_BT,
    )
    scale = BETA if reward_scale == "beta" else 1.0
    expected = expected_rewards(q, granularity, steps, scale)
    torch.testing.assert_close(result_BT, batch.padded(expected, padding=0.0))


@pytest.mark.parametrize("granularity", ["token", "step", "whole"])
def test_the_last_token_is_rewarded(granularity):
    """The recipe zeroes it; a response that differs only in its last token must score there."""
    prm_BT, ref_BT, mask_BT = torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[1, 1, 1, 0]])
    prm_BT[0, 2] = 2.0
    config = PRMConfig(beta=BETA, granularity=granularity)
    rewards_BT = process_rewards_BT(prm_BT, ref_BT, mask_BT, config, torch.zeros(1, 4).long())
    torch.testing.assert_close(rewards_BT, torch.tensor([[0.0, 0.0, 0.1, 0.0]]))


@pytest.mark.parametrize("granularity", ["token", "step", "whole"])
def test_total_is_the_score_at_every_granularity(granularity):
    batch = Batch(7)
    prm, ref, _ = logprobs(batch)
    args = (batch.padded(prm), batch.padded(ref), batch.mask_BT)
    config = PRMConfig(beta=BETA, granularity=granularity)
    rewards_BT = process_rewards_BT(*args, config, steps_of(batch)[1])
    torch.testing.assert_close(rewards_BT.sum(dim=1), sequence_scores_B(*args, BETA))


def test_equal_models_give_exact_zeros():
    """At step 0 the PRM is the reference: no noise may appear where there is none."""
    logprobs_BT = -torch.rand(4, 6)
    mask_BT = torch.ones(4, 6)
    for granularity in ("token", "step", "whole"):
        rewards_BT = process_rewards_BT(
            logprobs_BT,
            logprobs_BT.clone(),
            mask_BT,
            PRMConfig(beta=BETA, granularity=granularity),
            torch.arange(6).repeat(4, 1),
        )
        assert not rewards_BT.any()


def test_positions_are_where_rewards_may_stand():
    batch = Batch(9, extra_padding=1)
    steps, step_ids_BT = steps_of(batch)
    for granularity in ("token", "step", "whole"):
        ones = [[1.0] * n for n in batch.lengths]
        expected = batch.padded(expected_rewards(ones, granularity, steps), padding=0.0) > 0
        assert torch.equal(reward_positions(batch.mask_BT, granularity, step_ids_BT), expected)


def test_empty_response_scores_zero():
    mask_BT = torch.tensor([[0, 0], [1, 1]])
    logprobs_BT = torch.tensor([[math.nan, math.nan], [-1.0, -2.0]])
    for granularity in ("token", "step", "whole"):
        rewards_BT = process_rewards_BT(
            logprobs_BT,
            -torch.ones(2, 2),
            mask_BT,
            PRMConfig(beta=1.0, granularity=granularity),
            torch.zeros(2, 2).long(),
        )
        assert rewards_BT.sum(dim=1).tolist() == [0.0, -1.0]


def test_gradient_reaches_the_prm_alone_and_not_the_padding():
    prm_BT = torch.tensor([[-1.0, -math.inf], [-1.0, -2.0]], requires_grad=True)
    ref_BT = torch.tensor([[-1.0, -math.inf], [-1.0, -2.0]], requires_grad=True)
    mask_BT = torch.tensor([[1, 0], [1, 1]])
    sequence_scores_B(prm_BT, ref_BT, mask_BT, 0.5).sum().backward()
    assert prm_BT.grad is not None
    assert prm_BT.grad.tolist() == [[0.5, 0.0], [0.5, 0.5]]
    assert ref_BT.grad is None
    assert not process_rewards_BT(prm_BT, ref_BT, mask_BT, PRMConfig(beta=0.5)).requires_grad


def test_bfloat16_logprobs_are_subtracted_in_float32():
    prm_BT = torch.full((1, 3), -1.0, dtype=torch.bfloat16)
    result_BT = log_ratio_BT(prm_BT, torch.full((1, 3), -1.001), torch.ones(1, 3))
    assert result_BT.dtype == torch.float32
    torch.testing.assert_close(result_BT, torch.full((1, 3), 0.001), rtol=1e-3, atol=0)


def test_bad_input_is_explained():
    ok_BT, mask_BT = torch.zeros(2, 3), torch.ones(2, 3)
    cases = (
        ({"granularity": "line"}, "granularity\n.*'token', 'step', 'turn' or 'whole'"),
        ({"reward_scale": "half"}, "reward_scale\n.*'beta' or 'raw'"),
        ({"granularity": "step"}, "needs unit_ids_BT, the step of each token"),
        ({"granularity": "turn"}, "needs unit_ids_BT, the turn of each token"),
        ({"granularity": "step", "unit_ids_BT": torch.tensor([[0, 1, 0]] * 2)}, "decreases"),
        ({"granularity": "step", "unit_ids_BT": torch.zeros(2, 2)}, "unit_ids_BT has shape"),
        ({"beta": 0.0}, "beta\n.*greater than 0"),
    )
    for options, message in cases:
        unit_ids_BT = options.pop("unit_ids_BT", None)
        with pytest.raises(ValueError, match=message):
            process_rewards_BT(ok_BT, ok_BT, mask_BT, PRMConfig(**options), unit_ids_BT)
    with pytest.raises(ValueError, match="choose one of token, step, turn, whole"):
        reward_positions(mask_BT, "line")
    with pytest.raises(ValueError, match="prm_logprobs_BT has shape"):
        process_rewards_BT(torch.zeros(2, 1), ok_BT, mask_BT, PRMConfig())
    with pytest.raises(ValueError, match="beta is"):
        sequence_scores_B(ok_BT, ok_BT, mask_BT, math.nan)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), granularity=st.sampled_from(["token", "step", "whole"]))
def test_rows_are_independent_of_order_and_padding(seed, granularity):
    narrow, wide = Batch(seed), Batch(seed, extra_padding=4)
    prm, ref, _ = logprobs(narrow, seed)
    config = PRMConfig(beta=BETA, granularity=granularity)
    straight_BT, padded_BT = (
        process_rewards_BT(b.padded(prm), b.padded(ref), b.mask_BT, config, steps_of(b, seed)[1])
        for b in (narrow, wide)
    )
    torch.testing.assert_close(padded_BT[:, : narrow.num_columns], straight_BT)
    order = torch.randperm(len(prm), generator=torch.Generator().manual_seed(seed))
    shuffled_BT = process_rewards_BT(
        narrow.padded(prm)[order],
        narrow.padded(ref)[order],
        narrow.mask_BT[order],
        config,
        steps_of(narrow, seed)[1][order],
    )
    assert torch.equal(shuffled_BT, straight_BT[order])


@pytest.mark.parametrize("granularity", ["token", "step", "turn", "whole"])
def test_rewards_with_replies_add_up_to_the_score(granularity):
    for seed, scored_tokens in enumerate(SCORED):
        batch = Dialogues(seed)
        prm, ref, _ = logprobs(batch, seed)
        config = PRMConfig(beta=BETA, granularity=granularity, scored_tokens=scored_tokens)
        arguments = (batch.mask_BT, config, batch.unit_ids_BT(granularity), batch.policy_mask_BT)
        result_BT = process_rewards_BT(batch.padded(prm), batch.padded(ref), *arguments)
        scored_BT = scored_tokens_BT(batch.mask_BT, batch.policy_mask_BT, scored_tokens)
        scores_B = sequence_scores_B(batch.padded(prm), batch.padded(ref), scored_BT, BETA)
        torch.testing.assert_close(result_BT.sum(dim=1), scores_B)
