import torch

from megatron_prime.algorithm.prm_objectives import bon_acc
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm.prm_rows import rows_of_scores


def test_weights_rank_by_outcome():
    objective = bon_acc.Objective(PRMConfig(loss="bon_acc"))
    assert objective.requires == Requirements(group=True, prior_scores=True)
    scores_B, labels_B = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    rows = rows_of_scores(scores_B)
    targets = objective.targets(rows, labels_B, torch.zeros(4).long())
    assert isinstance(targets, PairTargets)
    torch.testing.assert_close(targets.weights_B, 4 * torch.tensor([1.0, 0.5, 1.0, 0.5]) ** 3)


def test_a_group_without_contrast_compares_with_zero():
    scores_B, ids_B = torch.tensor([3.0, -1.0, 2.0]), torch.tensor([4, 4, 4])
    targets = bon_acc.Objective(PRMConfig()).targets(rows_of_scores(scores_B), torch.ones(3), ids_B)
    assert isinstance(targets, PairTargets)
    assert targets.other_scores_B.tolist() == [0, 0, 0]
    assert targets.weights_B.tolist() == [3, 3, 3]
