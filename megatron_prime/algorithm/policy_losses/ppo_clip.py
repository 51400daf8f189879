"""PPO clip (Eq. 6), with DAPO's clip-higher and dual clip as options.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prime.algorithm.tensor_ops import safe_exp
from megatron_prime.config.tables.policy import PolicyConfig


@dataclass(frozen=True)
class Loss:
    """max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high)), with ratio = exp(logprobs - old_logprobs).

    With `policy.dual_clip` = c, the loss of a token with a negative advantage is at most -c * A.
    """

    config: PolicyConfig

    def token_losses_BT(  # noqa: N802
        self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss, with clip_fraction, dual_clip_fraction, approx_kl and ratio_mean by token."""
        config = self.config
        log_ratio_BT = logprobs_BT - old_logprobs_BT
        ratio_BT = safe_exp(log_ratio_BT)
        plain_BT = -advantages_BT * ratio_BT
        clipped_BT = -advantages_BT * ratio_BT.clamp(1 - config.clip_low, 1 + config.clip_high)
        loss_BT = torch.maximum(plain_BT, clipped_BT)
        metrics_BT = {
            "clip_fraction": (clipped_BT > plain_BT).float(),
            "dual_clip_fraction": torch.zeros_like(loss_BT),
            "approx_kl": -log_ratio_BT,
            "ratio_mean": ratio_BT,
        }
        if config.dual_clip is not None:
            bound_BT = -config.dual_clip * advantages_BT
            exceeds_BT = (advantages_BT < 0) & (loss_BT > bound_BT)
            loss_BT = torch.where(exceeds_BT, bound_BT, loss_BT)
            metrics_BT["dual_clip_fraction"] = exceeds_BT.float()
        return loss_BT, metrics_BT
