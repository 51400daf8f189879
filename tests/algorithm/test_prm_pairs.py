import pytest
import torch

from megatron_prime.algorithm.prm_pairs import (
    PairTargets,
    best_of_n_weights_B,
    other_side_scores_B,
    pair_losses_B,
)
from tests.algorithm import oracle
from tests.algorithm.oracle import Batch


@pytest.mark.parametrize("seed", range(3))
def test_targets_match_the_loops(seed):
    batch = Batch(seed, sizes=(2, 5, 1, 3), soft=True)
    scores = [sum(row) for row in batch.noise(seed)]
    scores_B, labels_B = torch.tensor(scores).double(), batch.outcome_rewards_B
    rows = range(len(scores))
    expected = [oracle.pair_target(scores, batch.outcomes, batch.ids, i) for i in rows]
    assert other_side_scores_B(scores_B, labels_B, batch.group_ids_B).tolist() == pytest.approx(expected)
    expected = [oracle.pair_weight(scores, batch.outcomes, batch.ids, i, "bon_rm") for i in rows]
    assert best_of_n_weights_B(scores_B, batch.group_ids_B).tolist() == pytest.approx(expected)


def test_losses_of_some_rows_use_the_targets_of_those_rows():
    scores_B, labels_B = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, 0.5])
    targets = PairTargets(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 2.0, 3.0]))
    whole_B = pair_losses_B(scores_B, labels_B, targets)
    for rows_b in (torch.tensor([2]), torch.tensor([1, 0])):
        part_b = pair_losses_B(scores_B[rows_b], labels_B[rows_b], targets.rows(rows_b))
        assert torch.equal(part_b, whole_B[rows_b])
    for i in range(3):
        loss = oracle.pair_loss(scores_B[i].item(), labels_B[i].item(), targets.other_scores_B[i].item())
        assert whole_B[i].item() == pytest.approx(loss * targets.weights_B[i].item(), rel=1e-6)


def test_missing_targets_are_explained():
    with pytest.raises(ValueError, match="needs targets"):
        pair_losses_B(torch.zeros(2), torch.zeros(2), None)
