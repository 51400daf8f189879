import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm import tensor_ops
from megatron_prime.algorithm.implicit_reward import reward_positions, unit_sums_BT
from megatron_prime.algorithm.tensor_ops import (
    discounted_return_BT,
    last_token_onehot,
    masked_mean,
    masked_sum,
    masked_whiten_BT,
    next_columns_BT,
    zero_padding,
)
from tests.algorithm import oracle
from tests.algorithm.oracle import Batch


def test_padding_is_replaced_and_passes_no_gradient():
    values_BT = torch.tensor([[1.0, math.nan], [2.0, math.inf]], requires_grad=True)
    mask_BT = torch.tensor([[True, False], [True, False]])
    zero_padding(values_BT, mask_BT).square().sum().backward()
    assert values_BT.grad is not None
    assert values_BT.grad.tolist() == [[2.0, 0.0], [4.0, 0.0]]


def test_masked_sum_and_mean_match_the_loops():
    batch = Batch(seed=3)
    flat = [v for row in batch.rewards for v in row]
    assert float(masked_sum(batch.rewards_BT, batch.mask_BT)) == pytest.approx(sum(flat))
    assert float(masked_mean(batch.rewards_BT, batch.mask_BT)) == pytest.approx(oracle.mean(flat))
    assert masked_sum(batch.rewards_BT, batch.mask_BT, dim=1).tolist() == pytest.approx(
        [sum(row) for row in batch.rewards]
    )
    assert masked_mean(batch.rewards_BT, batch.mask_BT, dim=1).tolist() == pytest.approx(
        [oracle.mean(row) for row in batch.rewards]
    )


def test_mean_of_nothing_is_zero():
    nothing_BT = torch.zeros(2, 3, dtype=torch.bool)
    assert float(masked_mean(torch.ones(2, 3), nothing_BT)) == 0
    assert masked_mean(torch.ones(2, 3), nothing_BT, dim=1).tolist() == [0, 0]


def test_bfloat16_is_summed_in_float32():
    ones_BT = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert float(masked_sum(ones_BT, ones_BT.bool())) == 4096


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="values_BT has shape"):
        masked_sum(torch.ones(2, 1), torch.ones(2, 3))


def test_whitening_matches_the_loops():
    batch = Batch(seed=4)
    result_BT = masked_whiten_BT(batch.rewards_BT, batch.mask_BT)
    torch.testing.assert_close(result_BT, batch.padded(oracle.whiten(batch.rewards), padding=0.0))


def test_whitening_gives_mean_zero_and_unbiased_variance_one():
    values_BT = 100 + 5 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    result_BT = masked_whiten_BT(values_BT, torch.ones(6, 50))
    assert float(result_BT.mean()) == pytest.approx(0, abs=1e-5)
    assert float(result_BT.var(unbiased=True)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.1])
def test_whitening_a_constant_gives_exact_zeros(value):
    values_BT = torch.full((3, 5), value)
    assert torch.equal(masked_whiten_BT(values_BT, torch.ones(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_whitening_fewer_than_two_tokens_gives_zeros(num_tokens):
    mask_BT = torch.arange(4)[None] < num_tokens
    assert torch.equal(masked_whiten_BT(torch.full((1, 4), 2.0), mask_BT), torch.zeros(1, 4))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
def test_returns_match_the_loops_on_ragged_rows(gamma):
    batch = Batch(seed=5, max_length=19, extra_padding=3)
    result_BT = discounted_return_BT(batch.rewards_BT, batch.mask_BT, gamma)
    expected_BT = batch.padded([oracle.returns(row, gamma) for row in batch.rewards], padding=0.0)
    torch.testing.assert_close(result_BT, expected_BT)


def test_long_responses_do_not_underflow():
    mask_BT = torch.ones(1, 4000)
    result_BT = discounted_return_BT(torch.ones(1, 4000), mask_BT, 0.9)
    torch.testing.assert_close(result_BT[0, :3000], torch.full((3000,), 10.0), rtol=1e-5, atol=0)


def test_gamma_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="gamma is"):
        discounted_return_BT(torch.ones(1, 2), torch.ones(1, 2), 1.1)


def test_next_columns_are_those_of_the_first_position_from_each_on():
    positions_BT = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    expected = [[1, 1, 4, 4, 4, 6], [0, 6, 6, 6, 6, 6], [6] * 6]
    assert next_columns_BT(positions_BT).tolist() == expected


@pytest.mark.parametrize("granularity", ["step", "whole"])
def test_blocks_of_rows_give_the_bits_of_the_whole(monkeypatch, granularity):
    generator = torch.Generator().manual_seed(0)
    rewards_BT = torch.randn(7, 5, generator=generator)
    policy_BT = torch.rand(7, 5, generator=generator) < 0.6
    ids_BT = (torch.rand(7, 5, generator=generator) < 0.5).cumsum(dim=1)

    def found():
        mask_BT = torch.ones(7, 5, dtype=torch.bool)
        policy_BT[:, 0] = True
        positions_BT = reward_positions(mask_BT, granularity, ids_BT, policy_BT)
        sums_BT = unit_sums_BT(rewards_BT, positions_BT, policy_BT, granularity)
        return next_columns_BT(policy_BT), positions_BT, sums_BT

    whole = found()
    for block_tokens in (1, 10, 19):
        monkeypatch.setattr(tensor_ops, "BLOCK_TOKENS", block_tokens)
        assert all(map(torch.equal, found(), whole))


def test_last_token():
    mask_BT = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert last_token_onehot(mask_BT).int().tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1), num_columns=st.integers(1, 9))
def test_padding_columns_change_nothing(seed, gamma, num_columns):
    narrow, wide = Batch(seed), Batch(seed, extra_padding=num_columns)
    for function in (lambda r, m: discounted_return_BT(r, m, gamma), masked_whiten_BT):
        narrow_BT = function(narrow.rewards_BT, narrow.mask_BT)
        wide_BT = function(wide.rewards_BT, wide.mask_BT)
        torch.testing.assert_close(wide_BT[:, : narrow.num_columns], narrow_BT)
        assert not wide_BT[:, narrow.num_columns :].any()
