import pytest
import torch

from megatron_prime.algorithm.estimators import rloo
from megatron_prime.algorithm.implicit_reward import process_rewards_BT, reward_positions
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle
from tests.algorithm.advantages import PLAIN, RAGGED, advantages_of
from tests.algorithm.oracle import Batch, replace

BASELINES = ["sequence_sum", "sequence_spread", "token_mean", "released"]


def test_it_compares_responses_of_a_group():
    assert rloo.Estimator.requires.group


@pytest.mark.parametrize("baseline", BASELINES)
def test_length_bias_of_a_constant_offset_is_as_documented(baseline):
    """Cross-entropy's class prior adds c to every response's sum, spread evenly here."""
    batch, c = Batch(10, sizes=RAGGED), 0.7
    options = replace(PLAIN, process_baseline=baseline)
    offset = [[r + c / len(row) for r in row] for row in batch.rewards]
    shift_BT = advantages_of(batch, options, batch.padded(offset)) - advantages_of(batch, options)
    for i, length in enumerate(batch.lengths):
        inverse = oracle.mean(1 / batch.lengths[j] for j in oracle.others(batch.ids, i))
        expected = {
            "sequence_spread": 0.0,
            "sequence_sum": c - c * length,
            "token_mean": c - c * length * inverse,
            "released": c - c * length * inverse,
        }[baseline]
        assert float(shift_BT[i, 0]) == pytest.approx(expected, abs=1e-12)
    if baseline == "sequence_spread":
        torch.testing.assert_close(shift_BT, torch.zeros_like(shift_BT))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_released_code_is_equation_5_with_token_means_plus_a_leak(gamma):
    """official = Eq. 5 with token-mean baseline + reverse-cumsum((r_t - mean_i) / (G - 1))."""
    batch = Batch(8, sizes=(4, 4, 4))
    options = replace(PLAIN, gamma_process=gamma)
    released_BT = advantages_of(batch, replace(options, process_baseline="released"))
    token_mean_BT = advantages_of(batch, replace(options, process_baseline="token_mean"))
    leak = [oracle.returns([(r - oracle.mean(row)) / 3 for r in row], gamma) for row in batch.rewards]
    torch.testing.assert_close(released_BT, token_mean_BT + batch.padded(leak, padding=0.0))


@pytest.mark.parametrize("baseline", ["sequence_sum", "sequence_spread", "token_mean"])
def test_whole_granularity_with_positions_is_leave_one_out_of_the_sums(baseline):
    batch = Batch(11, sizes=RAGGED)
    args = (batch.rewards_BT, torch.zeros_like(batch.rewards_BT), batch.mask_BT)
    rewards_BT = process_rewards_BT(*args, PRMConfig(beta=1.0, granularity="whole"))
    positions_BT = reward_positions(batch.mask_BT, "whole")
    options = replace(PLAIN, process_baseline=baseline, outcome_coef=0.0)
    result_BT = advantages_of(batch, options, rewards_BT, positions_BT=positions_BT)
    for i, row in enumerate(batch.rewards):
        expected = sum(row) - oracle.mean(sum(batch.rewards[j]) for j in oracle.others(batch.ids, i))
        assert result_BT[i, : len(row)].tolist() == pytest.approx([expected] * len(row))
