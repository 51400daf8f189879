import math

import pytest
import torch

from megatron_prime.algorithm.policy_loss import policy_loss
from megatron_prime.algorithm.policy_losses import ppo_clip
from megatron_prime.config.tables.policy import PolicyConfig


@pytest.mark.parametrize(
    ("gap", "advantage", "loss", "is_clipped"),
    [
        (math.log(1.1), 2.0, -2.2, False),
        (math.log(1.4), 2.0, -2.6, True),
        (math.log(0.5), 2.0, -1.0, False),
        (math.log(0.5), -2.0, 1.6, True),
        (math.log(1.4), -2.0, 2.8, False),
    ],
)
def test_the_ratio_is_clipped_on_the_side_that_the_advantage_rewards(gap, advantage, loss, is_clipped):
    options = PolicyConfig(clip_low=0.2, clip_high=0.3)
    losses_BT, metrics_BT = ppo_clip.Loss(options).token_losses_BT(
        torch.tensor([[gap]]), torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1).bool()
    )
    assert losses_BT.item() == pytest.approx(loss)
    assert bool(metrics_BT["clip_fraction"]) == is_clipped
    assert metrics_BT["ratio_mean"].item() == pytest.approx(math.exp(gap))
    assert metrics_BT["approx_kl"].item() == pytest.approx(-gap)


def test_dual_clip_bounds_the_loss_of_a_bad_action_that_became_likely():
    arguments = (torch.tensor([[5.0]]), torch.zeros(1, 1), torch.tensor([[-2.0]]), torch.ones(1, 1))
    assert float(policy_loss(*arguments, PolicyConfig())[0]) == pytest.approx(2 * math.exp(5))
    assert float(policy_loss(*arguments, PolicyConfig(dual_clip=3.0))[0]) == pytest.approx(6)
