"""Importance sampling token by token, as IMPALA (arXiv 1802.01561) and decoupled PPO (arXiv 2505.24298) use it.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass

from torch import Tensor

from megatron_prime.config.tables.policy import PolicyConfig


@dataclass(frozen=True)
class Ratio:
    """c_t = prox(y_t | y_<t) / behaviour(y_t | y_<t).

    The distribution of what came before a token is not corrected, so the gradient is biased, but its variance does not
    grow with the length of a response.
    """

    config: PolicyConfig

    def log_ratios_BT(self, log_ratios_BT: Tensor, mask_BT: Tensor) -> Tensor:  # noqa: N802
        """Return the log-ratios of the tokens as they are."""
        return log_ratios_BT
