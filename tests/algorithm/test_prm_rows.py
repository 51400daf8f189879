import math

import pytest
import torch

from megatron_prime.algorithm.implicit_reward import sequence_scores_B
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.prm_rows import PriorTargets, ScoredRows, SummedPrefixes
from megatron_prime.config.tables.prm import PRMConfig

MASK_BT = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
PRM_BT = torch.tensor([[-1.0, -2.0, -0.5], [-0.25, math.nan, -4.0], [-3.0, -math.inf, math.nan]])
REF_BT = torch.tensor([[-2.0, -1.0, -1.0], [-0.5, math.nan, -3.0], [-1.0, -math.inf, -1.0]])


def test_scores_are_those_of_the_implicit_reward_and_nothing_outside_the_mask_counts():
    prm_BT = PRM_BT.clone().requires_grad_()
    rows = ScoredRows.of(prm_BT, REF_BT, MASK_BT, 0.3)
    assert torch.equal(rows.scores_B, sequence_scores_B(PRM_BT, REF_BT, MASK_BT, 0.3))
    assert rows.log_ratio_BT.tolist() == [[1.0, -1.0, 0.5], [0.25, 0.0, -1.0], [-2.0, 0.0, 0.0]]
    rows.scores_B.sum().backward()
    assert prm_BT.grad is not None
    torch.testing.assert_close(prm_BT.grad, 0.3 * MASK_BT)
    assert rows.num_rows == 3


def test_wrong_rows_are_explained():
    with pytest.raises(ValueError, match="beta is 0"):
        ScoredRows(torch.zeros(1, 2), torch.ones(1, 2), 0)
    with pytest.raises(ValueError, match="log_ratio_BT has shape"):
        ScoredRows(torch.zeros(2), torch.ones(1, 2), 1.0)
    with pytest.raises(ValueError, match="unit_ids_BT has shape"):
        ScoredRows(torch.zeros(1, 2), torch.ones(1, 2), 1.0, torch.zeros(1, 3))


def test_targets_are_divided_by_rows_and_checked():
    targets = PairTargets(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    part = targets.rows(torch.tensor([2, 0]))
    assert (part.other_scores_B.tolist(), part.weights_B.tolist()) == ([3.0, 1.0], [6.0, 4.0])
    part.check_rows(2)
    with pytest.raises(ValueError, match="other_scores_B has shape"):
        part.check_rows(3)
    with pytest.raises(ValueError, match="needs targets"):
        PriorTargets.logits_of(targets)
    assert PriorTargets.logits_of(PriorTargets(torch.ones(1))).tolist() == [1.0]


def test_the_value_of_a_prefix_is_the_prior_and_the_sum_so_far():
    rows = ScoredRows.of(PRM_BT, REF_BT, MASK_BT, 0.5)
    objective = SummedPrefixes(PRMConfig(beta=0.5))
    logits_BL = objective.prefix_logits_BL(rows.log_ratio_BT, MASK_BT, torch.tensor([0.0, 1.0, -1.0]))
    expected = [[0.0, 0.5, 0.0, 0.25], [1.0, 1.125, 1.125, 0.625], [-1.0, -2.0, -2.0, -2.0]]
    assert logits_BL.tolist() == expected
