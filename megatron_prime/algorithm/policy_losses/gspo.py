"""GSPO: one probability ratio for a whole response (Group Sequence Policy Optimization, arXiv 2507.18071).

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prime.algorithm.tensor_ops import masked_mean, safe_exp
from megatron_prime.config.tables.policy import PolicyConfig


@dataclass(frozen=True)
class Loss:
    """max(-A_t * s_t, -A_t * clip(s_t, 1 - clip_low, 1 + clip_high)), the paper's GSPO-token (Eq. 13 and 14).

    s = exp(mean_t (logprobs - old_logprobs)) is the length-normalised ratio of the response, and s_t has the value of s
    and the gradient of s * logprobs_t, so that every token keeps an advantage of its own. With one advantage a response
    and `policy.aggregation = "sequence"`, loss and gradient are those of GSPO (Eq. 5).

    The ratio of a response differs from 1 far less than that of a token: the paper's clip_low is 3e-4, and its
    clip_high 4e-4.
    """

    config: PolicyConfig

    def token_losses_BT(  # noqa: N802
        self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss, with clip_fraction, approx_kl and ratio_mean by token."""
        log_ratio_BT = logprobs_BT - old_logprobs_BT
        log_s_B1 = masked_mean(log_ratio_BT.detach(), mask_BT, dim=1)[:, None]
        # The second factor is 1, and its gradient that of the token's log-prob.
        s_BT = safe_exp(log_s_B1) * (logprobs_BT - logprobs_BT.detach()).exp()
        plain_BT = -advantages_BT * s_BT
        clipped_BT = -advantages_BT * s_BT.clamp(1 - self.config.clip_low, 1 + self.config.clip_high)
        metrics_BT = {
            "clip_fraction": (clipped_BT > plain_BT).float(),
            "approx_kl": -log_ratio_BT,
            "ratio_mean": s_BT,
        }
        return torch.maximum(plain_BT, clipped_BT), metrics_BT
