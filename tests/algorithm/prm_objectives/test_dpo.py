import torch

from megatron_prime.algorithm.prm_objectives import dpo
from megatron_prime.config.tables.prm import PRMConfig


def test_it_compares_with_the_mean_of_the_other_side():
    objective = dpo.Objective(PRMConfig(loss="dpo"))
    assert objective.requires.group
    scores_B, labels_B = torch.tensor([3.0, -1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    targets = objective.targets(scores_B, labels_B, torch.tensor([4, 4, 4, 4]))
    assert targets is not None
    assert targets.other_scores_B.tolist() == [0.5, 2.0, 2.0, 0.5]
    assert targets.weights_B.tolist() == [1.0, 1.0, 1.0, 1.0]
    margins_B = torch.tensor([2.5, 3.0, 0.0, 0.5])
    torch.testing.assert_close(
        objective.losses_B(scores_B, labels_B, targets), torch.nn.functional.softplus(-margins_B)
    )
