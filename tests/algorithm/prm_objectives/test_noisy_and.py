import pytest
import torch

from megatron_prime.algorithm.prm_objectives import noisy_and
from megatron_prime.algorithm.prm_rows import PriorTargets, ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig

CONFIG = PRMConfig(beta=1.0)
OBJECTIVE = noisy_and.Objective(CONFIG)


def gradient(q, label, prior=0.0):
    q_BT = torch.tensor([q], dtype=torch.float64, requires_grad=True)
    rows = ScoredRows(q_BT, torch.ones(1, len(q), dtype=torch.bool), CONFIG.beta)
    targets = PriorTargets(torch.tensor([prior]))
    loss = OBJECTIVE.losses_B(rows, torch.tensor([label]), targets).sum()
    return torch.autograd.grad(loss, q_BT)[0][0].tolist()


def test_blame_goes_to_the_suspected_token_and_praise_to_all_that_were():
    assert OBJECTIVE.requires == Requirements()
    suspected, trusted = -1.0, 1.0
    wrong = gradient([trusted, suspected, trusted], 0.0)
    right = gradient([trusted, suspected, trusted], 1.0)
    assert wrong[1] > 2 * wrong[0] > 0
    assert right[1] < 2 * right[0] < 0
    assert wrong[0] == wrong[2]


def test_one_wrong_token_is_not_made_up_for_by_good_ones():
    logits_BL = OBJECTIVE.prefix_logits_BL(
        torch.tensor([[3.0, -10.0, 10.0, 10.0]]), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1)
    )
    assert logits_BL.sigmoid()[0, 1] > 0.5 > 0.05 > logits_BL.sigmoid()[0, 2]
    assert logits_BL.sigmoid()[0, 4] == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize("length", [1, 16, 10_000])
def test_at_the_start_a_response_of_any_length_has_its_prior(length):
    zeros_BT, mask_BT = torch.zeros(3, length), torch.ones(3, length, dtype=torch.bool)
    priors_B = torch.tensor([-3.8, 0.2, 3.8])
    logits_BL = OBJECTIVE.prefix_logits_BL(zeros_BT, mask_BT, priors_B)
    torch.testing.assert_close(logits_BL[:, -1], priors_B, rtol=1e-4, atol=1e-4)
