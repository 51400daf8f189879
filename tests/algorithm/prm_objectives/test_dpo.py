import torch

from megatron_prime.algorithm.prm_objectives import dpo
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm.prm_rows import rows_of_scores


def test_it_compares_with_the_mean_of_the_other_side():
    objective = dpo.Objective(PRMConfig(loss="dpo"))
    assert objective.requires == Requirements(group=True, prior_scores=True)
    scores_B, labels_B = torch.tensor([3.0, -1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    rows = rows_of_scores(scores_B)
    targets = objective.targets(rows, labels_B, torch.tensor([4, 4, 4, 4]))
    assert isinstance(targets, PairTargets)
    assert targets.other_scores_B.tolist() == [0.5, 2.0, 2.0, 0.5]
    assert targets.weights_B.tolist() == [1.0, 1.0, 1.0, 1.0]
    margins_B = torch.tensor([2.5, 3.0, 0.0, 0.5])
    torch.testing.assert_close(
        objective.losses_B(rows, labels_B, targets), torch.nn.functional.softplus(-margins_B)
    )
