import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.implicit_reward import log_ratio_BT, process_rewards_BT
from megatron_prime.algorithm.prm_rows import SummedPrefixes
from megatron_prime.algorithm.process_credit import credited_rewards
from megatron_prime.algorithm.tensor_ops import discounted_return_BT
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.types import scored_tokens_BT
from tests.algorithm.dialogues import SCORED, Dialogues, is_scored, random_order, weighted_to_the_minimum
from tests.algorithm.oracle import prior_logit, sigmoid

BETA = 0.05
CREDITS = ["own", "hindsight", "observation", "min"]
GRANULARITIES = ["token", "step", "turn", "whole"]


def logprobs(batch, seed=0):
    return batch.noise(seed + 1), batch.noise(seed + 2)


@pytest.mark.parametrize("scored_tokens", SCORED)
@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rewards_match_the_loops(granularity, credit, scored_tokens):
    config = PRMConfig(beta=BETA, granularity=granularity, scored_tokens=scored_tokens)
    for seed in range(6):
        batch = Dialogues(seed, extra_padding=seed % 2)
        prm, ref = logprobs(batch, seed)
        ids_BT, policy_BT = batch.unit_ids_BT(granularity), batch.policy_mask_BT
        inputs = (batch.padded(prm), batch.padded(ref), batch.mask_BT, config)
        result = credited_rewards(*inputs, credit, ids_BT, policy_BT)
        rows = range(len(prm))
        tokens = [[BETA * (p - r) for p, r in zip(prm[i], ref[i], strict=True)] for i in rows]
        expected = [batch.process_rewards(i, tokens[i], granularity, scored_tokens, credit) for i in rows]
        marks = [batch.positions(i, granularity, scored_tokens, credit) for i in rows]
        if credit == "min":
            expected = weighted_to_the_minimum(expected, marks)
        torch.testing.assert_close(result.rewards_BT, batch.padded(expected, padding=0.0))
        assert torch.equal(result.positions_BT, batch.padded(marks, padding=0.0).bool())
        if credit == "own":
            assert torch.equal(result.rewards_BT, process_rewards_BT(*inputs, ids_BT, policy_BT))


def test_evidence_in_a_reply_counts_for_the_turn_before_it():
    """Policy 2, reply 2, policy 1, reply 1: one number for each token, so that every sum names its terms."""
    rewards_BT = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    policy_BT = torch.tensor([[1, 1, 0, 0, 1, 0]])
    turns_BT = torch.tensor([[0, 0, 0, 0, 1, 1]])
    for granularity, credit, expected in (
        ("token", "own", [1.0, 2, 4, 8, 16, 32]),
        ("token", "hindsight", [2.0, 4, 8, 16, 32, 0]),
        ("token", "observation", [0.0, 0, 4, 8, 0, 32]),
        ("turn", "own", [0.0, 15, 0, 0, 48, 0]),
        ("turn", "hindsight", [0.0, 28, 0, 0, 32, 0]),
        ("turn", "observation", [0.0, 12, 0, 0, 32, 0]),
        ("whole", "own", [0.0, 0, 0, 0, 63, 0]),
        ("whole", "observation", [0.0, 0, 0, 0, 44, 0]),
    ):
        config = PRMConfig(beta=1.0, granularity=granularity)
        zeros_BT, ones_BT = torch.zeros_like(rewards_BT), torch.ones_like(policy_BT)
        result = credited_rewards(rewards_BT, zeros_BT, ones_BT, config, credit, turns_BT, policy_BT)
        assert result.rewards_BT.tolist() == [expected], (granularity, credit)


def test_the_return_of_the_minimum_form_is_the_lowest_reward_that_is_still_to_come():
    rewards_BT = torch.tensor([[3.0, -2.0, 1.0, 5.0], [4.0, 4.0, 4.0, 0.0]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    result = credited_rewards(
        rewards_BT, torch.zeros_like(rewards_BT), mask_BT, PRMConfig(beta=1.0), credit="min"
    )
    returns_BT = discounted_return_BT(result.rewards_BT, mask_BT, 1.0)
    third = 4.0 / 3
    expected = [[-2.0, -2.0, 0.0, 0.0], [4.0, 2 * third, third, 0.0]]
    torch.testing.assert_close(returns_BT, torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scored_tokens", SCORED)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_value_differences_match_the_loops_and_add_up_to_the_change_of_the_value(granularity, scored_tokens):
    config = PRMConfig(beta=BETA, granularity=granularity, scored_tokens=scored_tokens)
    for seed in range(6):
        batch = Dialogues(seed, extra_padding=seed % 2)
        prm, ref = logprobs(batch, seed)
        values, changes = [], []
        for i, writers in enumerate(batch.writers):
            scored = [
                BETA * (p - r) if is_scored(is_policy, scored_tokens) else 0.0
                for p, r, is_policy in zip(prm[i], ref[i], writers, strict=True)
            ]
            prior = prior_logit(batch.outcomes, batch.ids, i)
            values.append([sigmoid(prior + sum(scored[:t])) for t in range(len(scored) + 1)])
            changes.append([after - before for before, after in itertools.pairwise(values[i])])
        expected = [
            batch.process_rewards(i, row, granularity, scored_tokens, "own") for i, row in enumerate(changes)
        ]
        scored_BT = scored_tokens_BT(batch.mask_BT, batch.policy_mask_BT, scored_tokens)
        ratios_BT = log_ratio_BT(batch.padded(prm), batch.padded(ref), scored_BT)
        priors_B = prior_logits_B(batch.outcome_rewards_B, batch.group_ids_B)
        result = credited_rewards(
            batch.padded(prm),
            batch.padded(ref),
            batch.mask_BT,
            config,
            "td",
            batch.unit_ids_BT(granularity),
            batch.policy_mask_BT,
            SummedPrefixes(config).prefix_logits_BL(ratios_BT, scored_BT, priors_B),
        )
        torch.testing.assert_close(result.rewards_BT, batch.padded(expected, padding=0.0))
        total = torch.tensor([row[-1] - row[0] for row in values], dtype=torch.float64)
        torch.testing.assert_close(result.rewards_BT.sum(dim=1), total)


def test_value_differences_need_values():
    logprobs_BT = -torch.rand(2, 3)
    inputs = (logprobs_BT, logprobs_BT, torch.ones(2, 3), PRMConfig(), "td")
    with pytest.raises(ValueError, match="'td' needs prefix_logits_BL"):
        credited_rewards(*inputs)
    with pytest.raises(ValueError, match="prefix_logits_BL"):
        credited_rewards(*inputs, prefix_logits_BL=torch.zeros(2, 3))


def test_equal_models_give_exact_zeros_in_every_form():
    logprobs_BT, mask_BT = -torch.rand(4, 6), torch.ones(4, 6)
    mask_BT[3] = 0
    logits_BL = SummedPrefixes(PRMConfig()).prefix_logits_BL(torch.zeros(4, 6), mask_BT, torch.rand(4))
    for credit in [*CREDITS, "td"]:
        inputs = (logprobs_BT, logprobs_BT.clone(), mask_BT, PRMConfig(), credit)
        result = credited_rewards(*inputs, prefix_logits_BL=logits_BL)
        assert not result.rewards_BT.any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    granularity=st.sampled_from(GRANULARITIES),
    credit=st.sampled_from(CREDITS),
    scored_tokens=st.sampled_from(SCORED),
)
def test_rewards_do_not_depend_on_order_padding_or_an_empty_hole(seed, granularity, credit, scored_tokens):
    config = PRMConfig(beta=BETA, granularity=granularity, scored_tokens=scored_tokens)

    def rewards_of(batch, order, policy_mask_BT):
        prm, ref = logprobs(batch, seed)
        ids_BT = batch.unit_ids_BT(granularity)
        return credited_rewards(
            batch.padded(prm)[order],
            batch.padded(ref)[order],
            batch.mask_BT[order],
            config,
            credit,
            None if ids_BT is None else ids_BT[order],
            None if policy_mask_BT is None else policy_mask_BT[order],
        ).rewards_BT

    narrow, wide = Dialogues(seed), Dialogues(seed, extra_padding=4)
    order = random_order(len(narrow.ids), seed)
    straight_BT = rewards_of(narrow, slice(None), narrow.policy_mask_BT)
    shuffled_BT = rewards_of(wide, order, wide.policy_mask_BT)[:, : narrow.num_columns]
    # The temperature of `min` is a sum over the batch, whose rounding depends on the order of the rows.
    tolerance = 1e-9 if credit == "min" else 0.0
    torch.testing.assert_close(shuffled_BT, straight_BT[order], rtol=tolerance, atol=0)
    alone = Dialogues(seed, has_replies=False, dtype=torch.float32)
    rewards_BT = rewards_of(alone, order, alone.mask_BT.float())
    assert torch.equal(rewards_BT, rewards_of(alone, order, None))
    assert not math.isnan(rewards_BT.sum().item())
