"""Masked sums, whitening and discounted returns on right-padded responses.

Values outside a mask, NaN and infinities included, never reach a result: they are replaced, not multiplied by zero. A
mask may have holes, the replies of an environment, except where a function speaks of responses.

Shapes: B responses, T response tokens (right padded).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_shapes, check_unit_interval

WHITEN_EPS = 1e-8
# exp(20) is 5e8: beyond any meaningful ratio, far from overflow in float32. Past the clamp the gradient is 0.
MAX_LOG_RATIO = 20.0
BLOCK_TOKENS = 1 << 23
"""Number of tokens, padding included, that `by_row_blocks` takes at a time."""


def as_float(values: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is that already; sums over a response need the precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def zero_padding(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return values_BT with exact zeros where the mask is false; no gradient flows there, not even NaN."""
    check_shapes(mask_BT.shape, values_BT=values_BT)
    return torch.where(mask_BT.bool(), values_BT, torch.zeros_like(values_BT))


def safe_exp(log_ratio: Tensor) -> Tensor:
    """Return exp of the log-ratio clamped to +-20, which neither overflows nor vanishes."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def masked_sum(values_BT: Tensor, mask_BT: Tensor, dim: int | None = None) -> Tensor:
    """Return the sum of the values under the mask, over all of it or along one dimension."""
    kept_BT = zero_padding(as_float(values_BT), mask_BT)
    return kept_BT.sum() if dim is None else kept_BT.sum(dim=dim)


def masked_mean(values_BT: Tensor, mask_BT: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean of the values under the mask, over all of it or along one dimension; 0 where it is empty."""
    mask_BT = mask_BT.bool()
    count = mask_BT.sum() if dim is None else mask_BT.sum(dim=dim)
    return masked_sum(values_BT, mask_BT, dim) / count.clamp(min=1)


def masked_whiten_BT(values_BT: Tensor, mask_BT: Tensor) -> Tensor:  # noqa: N802
    """Shift and scale the values under the mask to mean 0 and unbiased variance 1.

    (x - mean) * rsqrt(var + 1e-8) over all tokens given: pass the whole global batch, or the result depends
    on the layout. Fewer than two tokens, or equal ones, become 0. Zero outside the mask. Statistics are
    summed in float64.
    """
    mask_BT = mask_BT.bool()
    values_BT = zero_padding(as_float(values_BT), mask_BT)
    num_tokens = mask_BT.sum()
    mean = values_BT.sum(dtype=torch.float64) / num_tokens.clamp(min=1)
    centred_BT = zero_padding(values_BT - mean.to(values_BT.dtype), mask_BT)
    variance = centred_BT.square().sum(dtype=torch.float64) / (num_tokens - 1).clamp(min=1)
    return centred_BT * torch.rsqrt(variance + WHITEN_EPS).to(values_BT.dtype)


def outcome_cross_entropy_B(logits_BT: Tensor, labels_B: Tensor, mask_BT: Tensor) -> Tensor:  # noqa: N802
    """Return the mean cross-entropy of each row's masked logits with its label in [0, 1]; 0 without a position."""
    labels_BT = labels_B[:, None].to(logits_BT.dtype).expand_as(logits_BT)
    losses_BT = torch.nn.functional.binary_cross_entropy_with_logits(logits_BT, labels_BT, reduction="none")
    return masked_mean(losses_BT, mask_BT, dim=1)


def discounted_return_BT(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:  # noqa: N802
    """Return R_t = sum_{s >= t} gamma^(s - t) * r_s within each response, zero in the padding.

    Every token of the response is a step in time, an environment's included.

    gamma < 1 uses log2(T) doubling steps, R <- R + gamma^(2^k) * shift(R, 2^k), which never divides by a
    power of gamma: the quotient form of a discounted sum underflows on long responses.

    Raises:
        ValueError: gamma outside [0, 1], or shapes differ.
    """
    check_unit_interval(gamma=gamma)
    returns_BT = zero_padding(as_float(rewards_BT), mask_BT)
    if gamma == 1:
        returns_BT = returns_BT.flip(dims=[1]).cumsum(dim=1).flip(dims=[1])
    else:
        span = 1
        while span < returns_BT.shape[1]:
            shifted_BT = torch.nn.functional.pad(returns_BT[:, span:], (0, span))
            returns_BT = returns_BT + gamma**span * shifted_BT
            span *= 2
    return zero_padding(returns_BT, mask_BT)


def by_row_blocks(of_rows: Callable[..., Tensor], *tensors_BT: Tensor) -> Tensor:
    """Return `of_rows(*tensors_BT)` of a function that treats each row alone, a few rows at a time.

    A temporary of 8 bytes for each of 16,384 responses of 8,192 tokens has 1 GiB.
    """
    num_rows = max(1, BLOCK_TOKENS // max(1, tensors_BT[0].shape[1]))
    if num_rows >= tensors_BT[0].shape[0]:
        return of_rows(*tensors_BT)
    blocks = zip(*(tensor_BT.split(num_rows) for tensor_BT in tensors_BT), strict=True)
    return torch.cat([of_rows(*block) for block in blocks])


def next_columns_BT(positions_BT: Tensor) -> Tensor:  # noqa: N802
    """Return the column of the first position at or after each column, T where there is none."""
    num_columns = positions_BT.shape[1]
    columns_T = torch.arange(num_columns, device=positions_BT.device)

    def of_rows(positions_bT: Tensor) -> Tensor:
        columns_bT = torch.where(positions_bT.bool(), columns_T, num_columns)
        return columns_bT.flip(dims=[1]).cummin(dim=1).values.flip(dims=[1])

    return by_row_blocks(of_rows, positions_BT)


def last_token_onehot(mask_BT: Tensor) -> Tensor:
    """Return a bool tensor that is true on the last token of each response; an empty response has none."""
    mask_BT = mask_BT.bool()
    following_BT = torch.nn.functional.pad(mask_BT[:, 1:], (0, 1), value=False)
    return mask_BT & ~following_BT
