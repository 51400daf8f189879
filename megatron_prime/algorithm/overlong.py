"""The penalty of responses that come near the length limit or reach it.

Shapes: B responses.
"""

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_unit_interval


def overlong_penalties_B(  # noqa: N802
    num_tokens_B: Tensor, max_tokens: int, buffer_tokens: int, penalty: float = 1.0
) -> Tensor:
    """Return DAPO's soft over-long penalty (arXiv 2503.14476, Eq. 13), to be added to the outcome: float32 [B].

    It is 0 up to max_tokens - buffer_tokens tokens, then falls linearly to -penalty at max_tokens.

    Args:
        num_tokens_B: int, response lengths, at most max_tokens.
        max_tokens: the limit at which responses are cut.
        buffer_tokens: number of tokens before the limit over which the penalty grows, 1 .. max_tokens.
        penalty: the penalty at the limit, in [0, 1].

    Raises:
        ValueError: buffer_tokens or penalty out of range.
    """
    check_unit_interval(penalty=penalty)
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens is {buffer_tokens}; it must lie in 1 .. max_tokens = {max_tokens}")
    excess_B = (num_tokens_B.float() - (max_tokens - buffer_tokens)) / buffer_tokens
    return -penalty * torch.clamp(excess_B, 0.0, 1.0)
