"""GRPO: rewards are centred on the mean of their group and divided by its standard deviation (Eq. 7).

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megatron_prime.algorithm.groups import group_mean, group_std
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import discounted_return_BT, masked_mean, zero_padding
from megatron_prime.config.tables.advantage import AdvantageConfig

# A group whose spread is below this share of its mean size is constant up to rounding; its contrast is noise.
CONSTANT_GROUP_RTOL = 1e-6


@dataclass(frozen=True)
class Estimator:
    """Group-normalized outcomes and process rewards; a constant group has advantage 0."""

    config: AdvantageConfig
    requires: ClassVar[Requirements] = Requirements(group=True)

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Return (r - group mean) / group standard deviation."""
        centred_B = outcome_rewards_B - group_mean(outcome_rewards_B, group_ids_B)
        return centred_B * _inverse_std(outcome_rewards_B, group_ids_B)

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Normalize token rewards by the mean and deviation of the responses' means, then take discounted returns."""
        mean_B = masked_mean(process_rewards_BT, positions_BT, dim=1)
        centred_BT = process_rewards_BT - group_mean(mean_B, group_ids_B)[:, None]
        normalized_BT = zero_padding(centred_BT, positions_BT) * _inverse_std(mean_B, group_ids_B)[:, None]
        return discounted_return_BT(normalized_BT, mask_BT, self.config.gamma_process)


def _inverse_std(values_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return 1 / the group's standard deviation, or 0 for a group that is constant up to rounding."""
    std_B = group_std(values_B, group_ids_B)
    scale_B = group_mean(values_B.abs(), group_ids_B)
    varies_B = std_B > CONSTANT_GROUP_RTOL * scale_B
    return torch.where(varies_B, 1.0 / torch.where(varies_B, std_B, torch.ones_like(std_B)), 0.0)
