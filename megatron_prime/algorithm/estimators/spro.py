"""SPRO (arXiv 2507.01551): outcomes by GRPO, and running sums of rewards compared at the same token of the group.

With C_it = sum_{s <= t} r_is, r_is = beta * log-ratio of the policy before the update and the reference
(`prm.source = "policy"`),

    A_it = (r_o,i - mean) / std + C_it - mean over the responses j of the group that have a token t of C_jt,

the paper's masked step advantage. Rewards of a PRM work alike. Where an environment replies, token t is the t-th of the
response, replies included, and only responses whose token t carries a reward are compared.

Shapes: B responses, T response tokens (right padded), P groups, G slots of the largest group.
"""

from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.estimators import grpo
from megatron_prime.algorithm.groups import group_table
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import zero_padding


class Estimator(grpo.Estimator):
    """Group-normalized outcomes and running sums of rewards; gamma_process has no effect and must be 1."""

    requires: ClassVar[Requirements] = Requirements(
        group=True, prm=True, undiscounted_process=True, own_credit=True, tokens=True
    )

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Subtract the mean over the group of the sums of rewards up to and with the same token."""
        running_BT = zero_padding(process_rewards_BT.double().cumsum(dim=1), positions_BT)
        table = group_table(group_ids_B)
        active_PGT = positions_BT[table.rows] & table.filled[:, :, None]
        sums_PT = (running_BT[table.rows] * active_PGT).sum(dim=1)
        mean_BT = table.spread(sums_PT / active_PGT.sum(dim=1).clamp(min=1))
        return zero_padding(running_BT - mean_BT, positions_BT).to(process_rewards_BT.dtype)
