import math

import pytest
import torch

from megatron_prime.algorithm.prm_objectives import ipvrm
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig

CONFIG = PRMConfig(beta=2.0)
Q_BT = torch.tensor([[1.0, 0.0, -2.0, 0.0]])
MASK_BT = torch.tensor([[True, False, True, False]])


def test_a_value_is_the_mean_so_far_and_unscored_tokens_do_not_count():
    objective = ipvrm.Objective(CONFIG)
    assert objective.requires == Requirements()
    logits_BL = objective.prefix_logits_BL(Q_BT, MASK_BT, torch.tensor([5.0]))
    assert logits_BL.tolist() == [[0.0, 2.0, 2.0, -1.0, -1.0]]
    for label in (0.0, 1.0):
        sign = 1 if label else -1
        expected = (math.log1p(math.exp(-sign * 2.0)) + math.log1p(math.exp(sign * 1.0))) / 2
        rows = ScoredRows(Q_BT, MASK_BT, CONFIG.beta)
        assert objective.losses_B(rows, torch.tensor([label]), None).item() == pytest.approx(expected)


def test_every_prefix_is_trained_by_itself():
    """Two responses that differ in their last token, one of them right: the shared prefix learns one half."""
    q_BT = torch.tensor([[0.8, 0.3], [0.8, -0.3]], requires_grad=True)
    rows = ScoredRows(q_BT, torch.ones(2, 2, dtype=torch.bool), CONFIG.beta)
    loss = ipvrm.Objective(CONFIG).losses_B(rows, torch.tensor([1.0, 0.0]), None).sum()
    (grad_BT,) = torch.autograd.grad(loss, q_BT)
    assert grad_BT[0, 1] < 0 < grad_BT[1, 1]
    assert grad_BT[:, 0].sum() > 0, "0.8 * 2 is above the logit of one half"
