"""iStar (arXiv 2509.19199): outcomes by GRPO, and each turn's process reward compared with all turns of the group.

Its PRM objective is `prm.loss = "dpo"` on whole trajectories; with `prm.scored_tokens = "policy"` and
`reference.mode = "policy"` the rewards are the paper's.

Shapes: B responses, T response tokens (right padded).
"""

from typing import ClassVar

import torch
from torch import Tensor

from megatron_prime.algorithm.estimators import grpo
from megatron_prime.algorithm.groups import group_mean, group_sizes
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import next_columns_BT, zero_padding


class Estimator(grpo.Estimator):
    """Group-normalized outcomes and rewards of turns, the latter without a return: gamma_process has no effect."""

    requires: ClassVar[Requirements] = Requirements(group=True, prm=True, turns=True)

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Give every token of a turn (r - mean) / standard deviation, over all turns of all responses of the group.

        The deviation is unbiased. Where the rewards are constant up to rounding, or there is one turn, this is 0.
        """
        rewards_BT = zero_padding(process_rewards_BT, positions_BT).double()
        num_turns_B = positions_BT.sum(dim=1).double()
        mean_num_B = group_mean(num_turns_B, group_ids_B)
        mean_B = group_mean(rewards_BT.sum(dim=1), group_ids_B) / mean_num_B
        scale_B = group_mean(rewards_BT.abs().sum(dim=1), group_ids_B) / mean_num_B
        centred_BT = zero_padding(rewards_BT - mean_B[:, None], positions_BT)
        num_others_B = mean_num_B * group_sizes(group_ids_B) - 1
        squares_B = group_mean(centred_BT.square().sum(dim=1), group_ids_B) * group_sizes(group_ids_B)
        std_B = (squares_B / num_others_B.clamp(min=1)).sqrt()
        varies_B = std_B > grpo.CONSTANT_GROUP_RTOL * scale_B
        inverse_B = torch.where(varies_B, 1 / torch.where(varies_B, std_B, 1.0), 0.0)
        normalized_BT = (centred_BT * inverse_B[:, None]).to(process_rewards_BT.dtype)
        # A turn's reward is on its last token: each token has that of the first position from it on. The tokens of a
        # reply get what is of no use, as nothing trains them.
        with_end_BT = torch.nn.functional.pad(normalized_BT, (0, 1))
        return zero_padding(with_end_BT.gather(1, next_columns_BT(positions_BT)), mask_BT)
