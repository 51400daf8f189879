"""Triton kernels for the per-logit operations of one tile: one kernel for the forward and one for the backward pass.

In the forward kernel each program processes one row: it reads the row's logits once and updates the token's running
softmax statistics. Programs need no synchronization or atomics, so the order of summation is fixed and results are
deterministic. The 1,024 rows of a tile are about eight programs per SM of an H100 (132 SMs), and the register limit
keeps all eight resident. Tiles with fewer rows occupy less of the GPU, but there the matrix product dominates: it reads
more bytes of weights than there are logits. The backward kernel has no reduction, so each program processes one block
of a row and overwrites the logits with their gradient.

All arithmetic is float32. exp(x) is computed as 2^(x log2 e) after subtracting the maximum: scaling the logits by
log2 e before the subtraction would add a rounding error proportional to the maximum. Importing this module requires
triton; the kernels run on a CPU when TRITON_INTERPRET=1 is set before the import.

Shape legend: C tokens of one tile, W vocabulary columns of one tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl

COLUMNS_PER_BLOCK = 2048
"""Logits that a program holds in registers: two 16-byte loads per thread in bf16, four in fp32."""
LAUNCH_OPTIONS = {"num_warps": 4, "maxnreg": 64}
"""At 64 registers per thread, the 65,536 registers of an SM hold eight programs of 4 * 32 threads."""
ROW_ALIGNMENT = 16
"""Row stride in logits is a multiple of this. Triton then infers aligned rows and emits 16-byte loads."""

LOG2_E = tl.constexpr(1.4426950408889634)


class TritonTileMath:
    """An implementation of `TileMath` with Triton kernels and a single buffer, in the dtype of the weights.

    Args:
        num_tokens: Maximum number of rows of a tile.
        num_columns: Maximum number of columns of a tile.
        like: A tensor with the dtype and device of the weights.
        temperature: Divisor of the logits.
    """

    def __init__(self, num_tokens: int, num_columns: int, like: torch.Tensor, temperature: float) -> None:
        self._buffer = like.new_empty(num_tokens, -(-num_columns // ROW_ALIGNMENT) * ROW_ALIGNMENT)
        self._scale = 1.0 / temperature

    def product_buffer(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """Return the output buffer for hidden @ weight.T of a tile, [C, W], a view with an aligned row stride."""
        return self._buffer[:num_tokens, :num_columns]

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """Update the running softmax as `TileMath.accumulate` describes; `product_CW` is not modified."""
        num_tokens, num_columns = product_CW.shape
        kernel: Any = accumulate_kernel
        kernel[(num_tokens,)](
            product_CW,
            labels_C,
            maximum_C,
            sums_3C,
            product_CW.stride(0),
            sums_3C.stride(0),
            num_columns,
            first_column,
            self._scale,
            BLOCK=COLUMNS_PER_BLOCK,
            **LAUNCH_OPTIONS,
        )

    def gradient(
        self, product_CW: torch.Tensor, labels_C: torch.Tensor, first_column: int, per_token_4C: torch.Tensor
    ) -> torch.Tensor:
        """Compute the gradient as `TileMath.gradient` describes, overwriting `product_CW`."""
        num_tokens, num_columns = product_CW.shape
        kernel: Any = gradient_kernel
        kernel[(num_tokens, triton.cdiv(num_columns, COLUMNS_PER_BLOCK))](
            product_CW,
            labels_C,
            per_token_4C,
            product_CW.stride(0),
            per_token_4C.stride(0),
            num_columns,
            first_column,
            self._scale,
            BLOCK=COLUMNS_PER_BLOCK,
            **LAUNCH_OPTIONS,
        )
        return product_CW


# Triton recompiles a kernel when an integer argument becomes 1 or its divisibility by 16 changes. These arguments vary
# with the tile, the rank and the number of tokens, so specializing on them would compile many variants of one kernel.
_ANY_VALUE = ["num_columns", "first_column", "sums_stride", "token_stride"]
_ANY_ALIGNMENT = ["labels", "maximum", "sums", "per_token"]


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def accumulate_kernel(
    logits,  # noqa: ANN001 - Triton passes device pointers and scalars
    labels,  # noqa: ANN001
    maximum,  # noqa: ANN001
    sums,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    sums_stride,  # noqa: ANN001
    num_columns,  # noqa: ANN001
    first_column,  # noqa: ANN001
    scale,  # noqa: ANN001
    BLOCK: tl.constexpr,
) -> None:
    """Update one token's running maximum, sum of exp, sum of exp * shifted logit, and label logit from a row."""
    row = tl.program_id(0)
    # The row offset is computed in int64, because row * stride may exceed 32 bits.
    row_logits = logits + row.to(tl.int64) * row_stride
    columns = tl.arange(0, BLOCK)
    old = tl.load(maximum + row)
    largest = old
    # Every lane of the block keeps partial sums, which are reduced once at the end: a reduction over threads per block
    # would be slower. The maximum has to be reduced for every block, because all lanes are shifted by the same value.
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    # Full blocks need no mask, which keeps their loads vectorized; the partial last block is handled separately.
    full_end = num_columns // BLOCK * BLOCK
    for start in range(0, full_end, BLOCK):
        values = tl.load(row_logits + start + columns).to(tl.float32) * scale
        new = tl.maximum(largest, tl.max(values, 0))
        total, weighted = _rescale_sums(total, weighted, largest, new)
        shifted = values - new
        weights = tl.exp2(shifted * LOG2_E)
        total += weights
        weighted += weights * shifted
        largest = new
    if full_end < num_columns:
        is_column = columns < num_columns - full_end
        pointers = row_logits + full_end + columns
        values = tl.load(pointers, mask=is_column, other=-float("inf")).to(tl.float32) * scale
        new = tl.maximum(largest, tl.max(values, 0))
        total, weighted = _rescale_sums(total, weighted, largest, new)
        # Masked lanes hold -inf, and 0 * -inf would be NaN in the weighted sum.
        shifted = tl.where(is_column, values - new, 0.0)
        weights = tl.where(is_column, tl.exp2(shifted * LOG2_E), 0.0)
        total += weights
        weighted += weights * shifted
        largest = new
    # The sums of earlier tiles are relative to the maximum at that time, so they are rescaled to the new one.
    sums += row
    before = tl.load(sums)
    before, weighted_before = _rescale_sums(before, tl.load(sums + sums_stride), old, largest)
    tl.store(sums, before + tl.sum(total, 0))
    tl.store(sums + sums_stride, weighted_before + tl.sum(weighted, 0))
    # Exactly one tile of one rank contains the label; all others add 0 to its logit.
    label = tl.load(labels + row) - first_column
    is_in_tile = (label >= 0) & (label < num_columns)
    label_logit = tl.load(row_logits + label, mask=is_in_tile, other=0.0).to(tl.float32) * scale
    sums += 2 * sums_stride
    tl.store(sums, tl.load(sums) + label_logit)
    tl.store(maximum + row, largest)


@triton.jit
def _rescale_sums(total, weighted, old, new):  # noqa: ANN001, ANN202
    """Rescale sums from an old to a new maximum (the correction of the online softmax)."""
    # Before the first block the maximum is -inf and the sums are 0: any finite step avoids a NaN and leaves them 0.
    step = tl.where(old == -float("inf"), 0.0, old - new)
    factor = tl.exp2(step * LOG2_E)
    return factor * total, factor * (weighted + step * total)


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def gradient_kernel(
    logits,  # noqa: ANN001
    labels,  # noqa: ANN001
    per_token,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    token_stride,  # noqa: ANN001
    num_columns,  # noqa: ANN001
    first_column,  # noqa: ANN001
    scale,  # noqa: ANN001
    BLOCK: tl.constexpr,
) -> None:
    """Overwrite one block of a row's logits with their gradient."""
    row = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    columns = tl.arange(0, BLOCK)
    pointers = logits + row.to(tl.int64) * row_stride + start + columns
    label = tl.load(labels + row) - first_column - start
    per_token += row
    logsumexp = tl.load(per_token)
    entropy = tl.load(per_token + token_stride)
    # Scaling the two upstream gradients by 1 / temperature here saves a multiplication per logit.
    grad_logprob = tl.load(per_token + 2 * token_stride) * scale
    grad_entropy = tl.load(per_token + 3 * token_stride) * scale
    if start + BLOCK <= num_columns:
        logprobs = tl.load(pointers).to(tl.float32) * scale - logsumexp
        grad = _gradient(logprobs, entropy, grad_logprob, grad_entropy)
        grad += tl.where(columns == label, grad_logprob, 0.0)
        tl.store(pointers, grad.to(logits.dtype.element_ty))
    else:
        is_column = columns < num_columns - start
        logprobs = tl.load(pointers, mask=is_column, other=0.0).to(tl.float32) * scale - logsumexp
        grad = _gradient(logprobs, entropy, grad_logprob, grad_entropy)
        grad += tl.where(columns == label, grad_logprob, 0.0)
        tl.store(pointers, grad.to(logits.dtype.element_ty), mask=is_column)


@triton.jit
def _gradient(logprobs, entropy, grad_logprob, grad_entropy):  # noqa: ANN001, ANN202
    """Return the gradient without the label's term: d logprob = -p and d entropy = -p (log p + entropy)."""
    return -tl.exp2(logprobs * LOG2_E) * (grad_logprob + grad_entropy * (logprobs + entropy))
