"""Importance sampling of whole responses.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass

from torch import Tensor

from megatron_prime.algorithm.tensor_ops import masked_sum
from megatron_prime.config.tables.policy import PolicyConfig


@dataclass(frozen=True)
class Ratio:
    """c_t = prod_s prox(y_s | y_<s) / behaviour(y_s | y_<s), over all trained tokens s of the response, for every t.

    Without bounds the weighted rewards are unbiased, but the variance grows exponentially with the length: long
    responses need small differences, and bounds.
    """

    config: PolicyConfig

    def log_ratios_BT(self, log_ratios_BT: Tensor, mask_BT: Tensor) -> Tensor:  # noqa: N802
        """Return the sum of a response's log-ratios at each of its tokens."""
        return masked_sum(log_ratios_BT, mask_BT, dim=1)[:, None].expand_as(log_ratios_BT)
