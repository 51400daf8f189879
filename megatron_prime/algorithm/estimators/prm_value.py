"""The PRM as value model (Sec. 5.4): A_t = r_o - v(y_<t), with v(y_<t) = sum_{s<t} r_s.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import zero_padding
from megatron_prime.config.tables.advantage import AdvantageConfig


@dataclass(frozen=True)
class Estimator:
    """The outcome minus the rewards that the PRM gave before the token.

    The value is a plain sum of the rewards in the scale given (beta * q after reward_scale = "beta"), so
    `gamma_process` must be 1.
    """

    config: AdvantageConfig
    requires: ClassVar[Requirements] = Requirements(prm=True, undiscounted_process=True, own_credit=True)

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Return the outcomes unchanged."""
        return outcome_rewards_B

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Return minus the value of each prefix."""
        value_BT = process_rewards_BT.cumsum(dim=1) - process_rewards_BT
        return -zero_padding(value_BT, mask_BT)
