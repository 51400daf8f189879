"""GSPO against its equations, written as loops over responses in float64."""

import math

import pytest
import torch

from megatron_prime.algorithm.policy_loss import aggregation_weights_BT, policy_loss
from megatron_prime.config.tables.policy import PolicyConfig

OPTIONS = PolicyConfig(loss="gspo", aggregation="sequence", clip_low=0.01, clip_high=0.02)


def batch(seed=0, num_rows=6, num_tokens=7):
    """Return log-probs with gradients, old ones, an advantage for each response, and a mask with holes."""
    random = torch.Generator().manual_seed(seed)
    old_BT = -torch.rand(num_rows, num_tokens, generator=random, dtype=torch.float64)
    change_BT = 0.05 * torch.randn(num_rows, num_tokens, generator=random, dtype=torch.float64)
    mask_BT = torch.rand(num_rows, num_tokens, generator=random) < 0.7
    mask_BT[:, 0] = True
    advantages_B = torch.randn(num_rows, generator=random, dtype=torch.float64)
    return (old_BT + change_BT).requires_grad_(), old_BT, advantages_B, mask_BT


@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_those_of_the_sequence_level_objective(seed):
    """Eq. 5: the mean over responses of min(s * A, clip(s) * A), differentiated by autograd as it stands."""
    logprobs_BT, old_BT, advantages_B, mask_BT = batch(seed)
    weights_BT = aggregation_weights_BT(mask_BT, "sequence").double()
    loss, metrics = policy_loss(
        logprobs_BT, old_BT, advantages_B[:, None].expand_as(old_BT), weights_BT, OPTIONS
    )
    (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
    expected, num_clipped = torch.zeros((), dtype=torch.float64), 0
    for row, advantage in enumerate(advantages_B):
        used = mask_BT[row]
        s = ((logprobs_BT[row, used] - old_BT[row, used]).sum() / used.sum()).exp()
        bounded = s.clamp(0.99, 1.02)
        expected = expected - torch.minimum(s * advantage, bounded * advantage) / len(advantages_B)
        num_clipped += bool(bounded * advantage < s * advantage)
    (expected_gradient_BT,) = torch.autograd.grad(expected, logprobs_BT)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-7)
    torch.testing.assert_close(gradient_BT, expected_gradient_BT, atol=1e-7, rtol=1e-6)
    assert metrics["clip_fraction"].item() == pytest.approx(num_clipped / len(advantages_B), abs=1e-6)


def test_some_responses_are_clipped_and_some_are_not():
    fractions = []
    for seed in range(4):
        logprobs_BT, old_BT, advantages_B, mask_BT = batch(seed)
        weights_BT = aggregation_weights_BT(mask_BT, "sequence").double()
        _, metrics = policy_loss(
            logprobs_BT, old_BT, advantages_B[:, None].expand_as(old_BT), weights_BT, OPTIONS
        )
        fractions.append(metrics["clip_fraction"].item())
    assert 0 < sum(fractions) < len(fractions)


def test_each_token_keeps_its_advantage():
    """Eq. 13: the ratio is the response's, the advantage the token's."""
    logprobs_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old_BT, advantages_BT = torch.tensor([[-1.0, -2.01]]), torch.tensor([[1.0, -3.0]])
    loss, _ = policy_loss(
        logprobs_BT, old_BT, advantages_BT, torch.full((1, 2), 0.5), PolicyConfig(loss="gspo")
    )
    loss.backward()
    s = math.exp(0.005)
    assert loss.item() == pytest.approx(s)
    assert logprobs_BT.grad is not None
    assert logprobs_BT.grad.tolist()[0] == pytest.approx([-0.5 * s, 1.5 * s])
