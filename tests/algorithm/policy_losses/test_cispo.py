"""CISPO against its equation, token by token."""

import math

import pytest
import torch

from megatron_prime.algorithm.policy_loss import policy_loss
from megatron_prime.config.tables.policy import PolicyConfig


@pytest.mark.parametrize(
    ("gap", "weight", "is_clipped"),
    [
        (0.0, 1.0, 0),
        (math.log(1.2), 1.2, 0),
        (math.log(1.5), 1.3, 1),
        (math.log(0.6), 0.8, 1),
        (50.0, 1.3, 1),
    ],
)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_a_clipped_token_keeps_a_gradient_of_bounded_size(gap, weight, is_clipped, advantage):
    """The gradient is -A * clip(ratio), whatever the sign of the advantage; PPO's clip would make it 0."""
    logprobs_BT = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    options = PolicyConfig(loss="cispo", clip_low=0.2, clip_high=0.3)
    one, old = torch.ones(1, 1, dtype=torch.float64), logprobs_BT.detach() - gap
    loss, metrics = policy_loss(logprobs_BT, old, advantage * one, one, options)
    loss.backward()
    assert logprobs_BT.grad is not None
    assert logprobs_BT.grad.item() == pytest.approx(-advantage * weight)
    assert loss.item() == pytest.approx(-advantage * weight * -1.0)
    assert metrics["clip_fraction"].item() == is_clipped


def test_tokens_without_a_weight_are_not_looked_at():
    logprobs_BT = torch.tensor([[-1.0, float("nan")]], requires_grad=True)
    arguments = (torch.tensor([[-1.1, float("inf")]]), torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
    loss, _ = policy_loss(logprobs_BT, *arguments, PolicyConfig(loss="cispo"))
    loss.backward()
    assert loss.isfinite()
    assert logprobs_BT.grad is not None
    assert logprobs_BT.grad[0, 1] == 0
