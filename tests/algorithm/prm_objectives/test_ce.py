import pytest
import torch

from megatron_prime.algorithm.prm_objectives import ce
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle
from tests.algorithm.prm_rows import rows_of_scores


def test_each_response_has_its_loss_by_itself():
    objective = ce.Objective(PRMConfig())
    assert objective.requires == Requirements()
    scores_B, labels_B = torch.tensor([-2.0, 0.3, 1.5]).double(), torch.tensor([0.0, 0.25, 1.0])
    rows = rows_of_scores(scores_B)
    targets = objective.targets(None, labels_B, torch.zeros(3).long())
    assert targets is None
    expected = [oracle.ce(s, o) for s, o in zip(scores_B.tolist(), labels_B.tolist(), strict=True)]
    assert objective.losses_B(rows, labels_B, targets).tolist() == pytest.approx(expected)
