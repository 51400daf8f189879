"""CISPO: clipped weights of importance sampling, so that no token loses its gradient (MiniMax-M1, arXiv 2506.13585).

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass

from torch import Tensor

from megatron_prime.algorithm.tensor_ops import safe_exp
from megatron_prime.config.tables.policy import PolicyConfig


@dataclass(frozen=True)
class Loss:
    """-A_t * stop_gradient(clip(ratio_t, 1 - clip_low, 1 + clip_high)) * logprobs_t (Eq. 4 and 5 of the paper).

    ratio_t = exp(logprobs_t - old_logprobs_t). PPO's clip takes the gradient of the clipped tokens away; here they keep
    one of bounded size. The paper bounds the ratio above alone: clip_low = 0.99 does nearly that.
    """

    config: PolicyConfig

    def token_losses_BT(  # noqa: N802
        self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss, with clip_fraction, approx_kl and ratio_mean by token."""
        log_ratio_BT = logprobs_BT - old_logprobs_BT
        ratio_BT = safe_exp(log_ratio_BT.detach())
        weight_BT = ratio_BT.clamp(1 - self.config.clip_low, 1 + self.config.clip_high)
        metrics_BT = {
            "clip_fraction": (weight_BT != ratio_BT).float(),
            "approx_kl": -log_ratio_BT,
            "ratio_mean": ratio_BT,
        }
        return -advantages_BT * weight_BT * logprobs_BT, metrics_BT
