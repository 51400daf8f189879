import pytest
import torch

from megatron_prime.algorithm.prm_objectives import dpo, dpo_units
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig

OBJECTIVE = dpo_units.Objective(PRMConfig(beta=1.0))


def test_prefixes_are_compared_unit_by_unit_and_an_ended_response_keeps_its_score():
    assert OBJECTIVE.requires == Requirements(group=True, prior_scores=True, units=True)
    q_BT = torch.tensor([[1.0, 2.0, 0.0, 4.0], [8.0, 16.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    # The third token of the first row is a reply that is not scored; ids need not begin at 0, and padding has any.
    unit_ids_BT = torch.tensor([[3, 3, 3, 7], [0, 1, 9, 2], [0, 0, 0, 0]])
    rows = ScoredRows(q_BT, mask_BT, 1.0, unit_ids_BT)
    labels_B, ids_B = torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3).long()
    targets = OBJECTIVE.targets(rows, labels_B, ids_B)
    assert isinstance(targets, dpo_units.UnitTargets)
    assert targets.other_scores_BK.tolist() == [[4.25, 12.25], [3.0, 7.0], [3.0, 7.0]]
    assert targets.has_unit_BK.tolist() == [[True, True], [True, True], [True, False]]
    margins = [[3.0 - 4.25, 7.0 - 12.25], [3.0 - 8.0, 7.0 - 24.0], [3.0 - 0.5]]
    expected = [torch.nn.functional.softplus(-torch.tensor(row)).mean().item() for row in margins]
    assert OBJECTIVE.losses_B(rows, labels_B, targets).tolist() == pytest.approx(expected)


def test_with_one_unit_it_is_dpo():
    q_BT = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    rows = ScoredRows(q_BT, torch.ones(6, 3, dtype=torch.bool), 1.0, torch.zeros(6, 3, dtype=torch.int64))
    labels_B, ids_B = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    whole = dpo.Objective(PRMConfig(beta=1.0))
    expected_B = whole.losses_B(rows, labels_B, whole.targets(rows, labels_B, ids_B))
    torch.testing.assert_close(
        OBJECTIVE.losses_B(rows, labels_B, OBJECTIVE.targets(rows, labels_B, ids_B)), expected_B
    )


def test_missing_units_and_targets_are_explained():
    rows = ScoredRows(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), 1.0)
    with pytest.raises(ValueError, match="needs the step or turn of each token"):
        OBJECTIVE.targets(rows, torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(ValueError, match="needs targets"):
        OBJECTIVE.losses_B(rows, torch.zeros(2), None)
