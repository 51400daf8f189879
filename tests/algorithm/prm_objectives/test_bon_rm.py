import torch

from megatron_prime.algorithm.prm_objectives import bon_rm
from megatron_prime.config.tables.prm import PRMConfig


def test_weights_rank_by_score():
    objective = bon_rm.Objective(PRMConfig(loss="bon_rm"))
    assert objective.requires.group
    scores_B, labels_B = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    targets = objective.targets(scores_B, labels_B, torch.zeros(4).long())
    assert targets is not None
    torch.testing.assert_close(targets.weights_B, 4 * torch.tensor([1.0, 0.75, 0.5, 0.25]) ** 3)


def test_a_group_of_one_has_weight_one():
    targets = bon_rm.Objective(PRMConfig()).targets(torch.ones(1), torch.ones(1), torch.tensor([4]))
    assert targets is not None
    assert targets.weights_B.tolist() == [1]
