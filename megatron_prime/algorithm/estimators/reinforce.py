"""REINFORCE: returns without a baseline (Eq. 8), the one estimator that allows a single response per prompt.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import discounted_return_BT
from megatron_prime.config.tables.advantage import AdvantageConfig


@dataclass(frozen=True)
class Estimator:
    """Rewards as they are."""

    config: AdvantageConfig
    requires: ClassVar[Requirements] = Requirements()

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Return the outcomes unchanged."""
        return outcome_rewards_B

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Return the discounted returns of the process rewards."""
        return discounted_return_BT(process_rewards_BT, mask_BT, self.config.gamma_process)
