import pytest
import torch

from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.prm_objectives import ce_intercept
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm.prm_rows import rows_of_scores


def test_it_needs_neither_groups_nor_scores_of_before():
    objective = ce_intercept.Objective(PRMConfig())
    assert objective.requires == Requirements()
    labels_B, ids_B = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 1, 2])
    targets = objective.targets(None, labels_B, ids_B)
    losses_B = objective.losses_B(rows_of_scores(torch.zeros(3)), labels_B, targets)
    assert losses_B.isfinite().all()


def test_at_the_start_its_gradient_is_that_of_reinforce_with_the_prior_as_baseline():
    """With a score of 0, d loss / d score = prior - label, where ce has 1/2 - label: an easy prompt moves less."""
    labels_B, ids_B = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 0, 1, 1])
    scores_B = torch.zeros(6, requires_grad=True)
    objective = ce_intercept.Objective(PRMConfig())
    targets = objective.targets(None, labels_B, ids_B)
    objective.losses_B(rows_of_scores(scores_B), labels_B, targets).sum().backward()
    assert scores_B.grad is not None
    expected_B = torch.sigmoid(prior_logits_B(labels_B, ids_B)) - labels_B
    torch.testing.assert_close(scores_B.grad, expected_B)
    assert scores_B.grad[4].item() == pytest.approx((2 * 0.6) / 3)
