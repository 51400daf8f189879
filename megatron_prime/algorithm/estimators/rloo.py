"""RLOO: the baseline of a response is the mean over the other responses to its prompt (Eq. 4 and 5).

Length bias. Cross-entropy teaches the PRM's score an offset c, the logit of the class prior, shared by all
responses. Spread evenly it adds c/|y| to each token reward, and the return of the first token moves by
    sequence_spread   0                                (cancels, at every token)
    token_mean        c - c * |y_i| * mean_{j != i} 1/|y_j|
    released          the same (both agree on the first token)
    sequence_sum      c - c * |y_i|
so only a baseline taken once per response cancels it. token_mean and released cancel it when all responses
are equally long, sequence_sum never does: it subtracts the others' whole sums once per token.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.groups import group_sizes, leave_one_out_mean
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import discounted_return_BT, masked_mean, masked_sum, zero_padding
from megatron_prime.config.tables.advantage import AdvantageConfig


@dataclass(frozen=True)
class Estimator:
    """Leave-one-out on outcomes and on process rewards.

    With r(y) a response's sum of process rewards and m its mean over the tokens that carry rewards, the process
    baseline (`advantage.process_baseline`) turns r_t into
        sequence_sum      r_t - mean_{j != i} r(y_j), Eq. 5 as printed
        token_mean        r_t - mean_{j != i} m_j, Eq. 5 as its text says
        released          r_t * G/(G-1) - sum_j m_j/(G-1), which is token_mean + (r_t - m_i)/(G-1)
        sequence_spread   r_t - mean_{j != i} r(y_j)/|y_i|, the whole baseline once per response (not in the paper)
    """

    config: AdvantageConfig
    requires: ClassVar[Requirements] = Requirements(group=True)

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Subtract the mean outcome of the other responses (Eq. 4)."""
        return outcome_rewards_B - leave_one_out_mean(outcome_rewards_B, group_ids_B)

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Subtract the process baseline on the tokens that carry rewards, then take discounted returns (Eq. 5)."""
        baselined_BT = self._subtract_baseline(process_rewards_BT, positions_BT, group_ids_B)
        return discounted_return_BT(
            zero_padding(baselined_BT, positions_BT), mask_BT, self.config.gamma_process
        )

    def _subtract_baseline(self, rewards_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor) -> Tensor:
        form = self.config.process_baseline
        sum_B = masked_sum(rewards_BT, positions_BT, dim=1)
        mean_B = masked_mean(rewards_BT, positions_BT, dim=1)
        if form == "released":
            size_B = group_sizes(group_ids_B).to(rewards_BT.dtype)
            others_B = leave_one_out_mean(mean_B, group_ids_B) + mean_B / (size_B - 1)
            return rewards_BT * (size_B / (size_B - 1))[:, None] - others_B[:, None]
        if form == "sequence_spread":
            num_positions_B = positions_BT.sum(dim=1).clamp(min=1)
            share_B = leave_one_out_mean(sum_B, group_ids_B) / num_positions_B
            return rewards_BT - share_B[:, None]
        per_response_B = sum_B if form == "sequence_sum" else mean_B
        return rewards_BT - leave_one_out_mean(per_response_B, group_ids_B)[:, None]
