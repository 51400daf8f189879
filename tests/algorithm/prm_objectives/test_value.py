import math

import pytest
import torch

from megatron_prime.algorithm.prm_objectives import value
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig

CONFIG = PRMConfig(loss="value")
LOGITS_BT = torch.tensor([[1.0, 0.0, -2.0, 0.0]])
MASK_BT = torch.tensor([[True, False, True, False]])


@pytest.fixture
def objective():
    return value.Objective(CONFIG)


def test_each_value_is_trained_to_be_the_probability_of_a_right_outcome(objective):
    assert objective.requires == Requirements(value_differences=True)
    for label in (0.0, 0.25, 1.0):
        chances = [1 / (1 + math.exp(-logit)) for logit in (1.0, -2.0)]
        losses = [-label * math.log(v) - (1 - label) * math.log(1 - v) for v in chances]
        rows = ScoredRows(LOGITS_BT, MASK_BT, CONFIG.beta)
        assert objective.losses_B(rows, torch.tensor([label]), None).item() == pytest.approx(sum(losses) / 2)


def test_a_shared_prefix_learns_the_share_of_right_outcomes(objective):
    logits_BT = torch.full((4, 1), math.log(3.0), requires_grad=True)
    rows = ScoredRows(logits_BT, torch.ones(4, 1, dtype=torch.bool), CONFIG.beta)
    losses_B = objective.losses_B(rows, torch.tensor([1.0, 1.0, 1.0, 0.0]), None)
    (grad_BT,) = torch.autograd.grad(losses_B.sum(), logits_BT)
    assert grad_BT.sum().item() == pytest.approx(0.0, abs=1e-6), "3 of 4 are right, and sigmoid(log 3) = 3/4"


def test_unscored_tokens_belong_to_the_state_before_them_and_nothing_is_left_at_the_end(objective):
    logits_BL = objective.prefix_logits_BL(LOGITS_BT, MASK_BT, torch.tensor([5.0]))
    assert logits_BL.tolist() == [[1.0, -2.0, -2.0, -math.inf, -math.inf]]


def test_a_response_is_judged_by_the_value_before_its_last_scored_token():
    logits_BT = torch.tensor([[1.0, 5.0, -2.0, 7.0], [1.0, 2.0, 3.0, 4.0]])
    mask_BT = torch.tensor([[True, False, True, False], [False] * 4])
    rows = ScoredRows(logits_BT * mask_BT, mask_BT, CONFIG.beta)
    assert value.last_values_B(rows).tolist() == [-2.0, 0.0]


def test_a_response_without_a_scored_token_has_no_loss_and_extreme_logits_stay_finite(objective):
    logits_BT = torch.tensor([[300.0, -300.0], [0.0, 0.0]], requires_grad=True)
    rows = ScoredRows(logits_BT, torch.tensor([[True, True], [False, False]]), CONFIG.beta)
    losses_B = objective.losses_B(rows, torch.tensor([0.0, 1.0]), None)
    (grad_BT,) = torch.autograd.grad(losses_B.sum(), logits_BT)
    assert losses_B.tolist() == [150.0, 0.0]
    assert grad_BT.isfinite().all()


def test_the_tokens_are_the_last_of_the_vocabulary():
    assert value.value_tokens(100) == (99, 98)
