"""Importance weights of whole responses that do not depend on their lengths.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass

from torch import Tensor

from megatron_prime.algorithm.tensor_ops import masked_mean
from megatron_prime.config.tables.policy import PolicyConfig


@dataclass(frozen=True)
class Ratio:
    """c_t = (prod_s prox(y_s | y_<s) / behaviour(y_s | y_<s)) ^ (1 / n), over the n trained tokens s of the response.

    The length-normalised ratio is that of GSPO (arXiv 2507.18071), here of the proximal and the behaviour policy. It is
    close to 1 and mostly of use with `policy.correction_outside = "mask"` and narrow bounds, such as 0.999 and 1.001,
    which leave out responses that have drifted as a whole.
    """

    config: PolicyConfig

    def log_ratios_BT(self, log_ratios_BT: Tensor, mask_BT: Tensor) -> Tensor:  # noqa: N802
        """Return the mean of a response's log-ratios at each of its tokens."""
        return masked_mean(log_ratios_BT, mask_BT, dim=1)[:, None].expand_as(log_ratios_BT)
