import torch

from megatron_prime.algorithm.prm_objectives import bon_rm
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm.prm_rows import rows_of_scores


def test_weights_rank_by_score():
    objective = bon_rm.Objective(PRMConfig(loss="bon_rm"))
    assert objective.requires == Requirements(group=True, prior_scores=True)
    scores_B, labels_B = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    rows = rows_of_scores(scores_B)
    targets = objective.targets(rows, labels_B, torch.zeros(4).long())
    assert isinstance(targets, PairTargets)
    torch.testing.assert_close(targets.weights_B, 4 * torch.tensor([1.0, 0.75, 0.5, 0.25]) ** 3)


def test_a_group_of_one_has_weight_one():
    rows = rows_of_scores(torch.ones(1))
    targets = bon_rm.Objective(PRMConfig()).targets(rows, torch.ones(1), torch.tensor([4]))
    assert isinstance(targets, PairTargets)
    assert targets.weights_B.tolist() == [1]
