"""Generalized advantage estimation (arXiv 1506.02438) with the PRM's probabilities as values.

With v_t the probability, by the PRM, that a response ends up right after its first t tokens, r_o its outcome, and no
discount,

    A_t = sum_{k >= 0} lambda^k delta_{t+k},   delta_t = v_t - v_{t-1},   delta_T = r_o - v_{T-1}

for the tokens t = 1..T. lambda = 1 is r_o - v_{t-1}, Sec. 5.4 of PRIME with a probability instead of a sum of rewards
(`prm_value`). lambda = 0 is the change of the value by the token alone.

The two parts of an advantage (`algorithm.advantage`) add up to it. The outcome part is lambda^(T-t) * (r_o - v_0),
where v_0 comes from the outcomes of the other responses. It is a baseline by itself, and all that remains where the
process part is scaled down, by `process_warmup_steps` or `process_trust`. The process part is

    sum_{s >= t} lambda^(s-t) * (v_s - v_{s-1}) - lambda^(T-t) * (v_T - v_0)

and needs the rewards of credit `td` alone. At a granularity coarser than `token` the values change at its positions.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import discounted_return_BT, last_token_onehot
from megatron_prime.config.tables.advantage import AdvantageConfig


@dataclass(frozen=True)
class Estimator:
    """Outcomes less the value of the prompt, and lambda returns of changes of the value; lambda is `gamma_process`."""

    config: AdvantageConfig
    requires: ClassVar[Requirements] = Requirements(prm=True, value_differences=True)

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Return r_o - v_0, v_0 the shrunk leave-one-out accuracy of `groups.prior_logits_B`."""
        return outcome_rewards_B - prior_logits_B(outcome_rewards_B, group_ids_B).sigmoid()

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Return the returns of the value's changes, with the whole change taken back on the last token."""
        changes_B = process_rewards_BT.sum(dim=1)
        deltas_BT = process_rewards_BT - changes_B[:, None] * last_token_onehot(mask_BT)
        return discounted_return_BT(deltas_BT, mask_BT, self.config.gamma_process)
