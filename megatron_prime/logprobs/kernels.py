"""What is done to the logits of one tile, as one Triton kernel forward and one backward.

Forward a program takes a row: it reads the row's logits once and corrects the token's running maximum and sums, so no
program waits for another and the sums have one order. A tile's 1,024 rows are eight programs on each of an H100's 132
SMs, which the limit of registers lets stand there together. A tile of fewer rows fills less, but then the product reads
more bytes of the weight than there are logits. Backward nothing is summed, so a program takes one block of a row, reads
it once and writes the gradient over it.

All arithmetic is float32. exp(x) is 2^(x log2 e) of a difference that was taken first: folding log2 e into the logits
would round a large maximum. Importing this module needs triton; with TRITON_INTERPRET=1 set before that, the kernels
run on a CPU.

Shape legend: C tokens of one tile, W vocabulary columns of one tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl

COLUMNS_PER_BLOCK = 2048
"""Logits that a program holds at one time: two 16-byte loads a thread in bf16, four in fp32."""
LAUNCH_OPTIONS = {"num_warps": 4, "maxnreg": 64}
"""65,536 registers of an SM hold eight programs of 4 * 32 threads."""
ROW_ALIGNMENT = 16
"""Rows start at multiples of so many logits, which Triton must know to load 16 bytes at a time."""

LOG2_E = tl.constexpr(1.4426950408889634)


class TritonTileMath:
    """The kernels and the one buffer they work in, in the type of the weights.

    Args:
        num_tokens: rows of the largest tile.
        num_columns: columns of the widest tile.
        like: a tensor of the weights' type and device.
        temperature: logits are divided by it.
    """

    def __init__(self, num_tokens: int, num_columns: int, like: torch.Tensor, temperature: float) -> None:
        self._buffer = like.new_empty(num_tokens, -(-num_columns // ROW_ALIGNMENT) * ROW_ALIGNMENT)
        self._scale = 1.0 / temperature

    def product_room(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """Where a tile's hidden @ weight.T goes, [C, W]; rows are as far apart as in the widest tile."""
        return self._buffer[:num_tokens, :num_columns]

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """As `TorchTileMath.accumulate`; the logits stay as they are."""
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
        """As `TorchTileMath.gradient`, in place of the logits."""
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


# Tiles of a last column, of other ranks, of fewer and of other tokens must not be compiled anew.
_ANY_VALUE = ["num_columns", "first_column", "sums_stride", "token_stride"]
_ANY_PLACE = ["labels", "maximum", "sums", "per_token"]


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_PLACE)
def accumulate_kernel(
    logits,  # noqa: ANN001 - pointers and scalars of the device
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
    """Take the logits of a row into its token's maximum, sum of exp, sum of exp * shifted logit, and label's logit."""
    row = tl.program_id(0)
    row_logits = logits + row.to(tl.int64) * row_stride
    columns = tl.arange(0, BLOCK)
    old = tl.load(maximum + row)
    largest = old
    # Each place of a block has sums of its own until the end; only the maximum is taken over the block each time.
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    ragged = num_columns // BLOCK * BLOCK
    for start in range(0, ragged, BLOCK):
        values = tl.load(row_logits + start + columns).to(tl.float32) * scale
        new = tl.maximum(largest, tl.max(values, 0))
        total, weighted = _move_maximum(total, weighted, largest, new)
        shifted = values - new
        weights = tl.exp2(shifted * LOG2_E)
        total += weights
        weighted += weights * shifted
        largest = new
    if ragged < num_columns:
        is_column = columns < num_columns - ragged
        places = row_logits + ragged + columns
        values = tl.load(places, mask=is_column, other=-float("inf")).to(tl.float32) * scale
        new = tl.maximum(largest, tl.max(values, 0))
        total, weighted = _move_maximum(total, weighted, largest, new)
        shifted = tl.where(is_column, values - new, 0.0)
        weights = tl.where(is_column, tl.exp2(shifted * LOG2_E), 0.0)
        total += weights
        weighted += weights * shifted
        largest = new
    sums += row
    before = tl.load(sums)
    before, weighted_before = _move_maximum(before, tl.load(sums + sums_stride), old, largest)
    tl.store(sums, before + tl.sum(total, 0))
    tl.store(sums + sums_stride, weighted_before + tl.sum(weighted, 0))
    label = tl.load(labels + row) - first_column
    is_here = (label >= 0) & (label < num_columns)
    own = tl.load(row_logits + label, mask=is_here, other=0.0).to(tl.float32) * scale
    sums += 2 * sums_stride
    tl.store(sums, tl.load(sums) + own)
    tl.store(maximum + row, largest)


@triton.jit
def _move_maximum(total, weighted, old, new):  # noqa: ANN001, ANN202
    """Restate sums against a new maximum; where nothing was summed yet it was -inf, and any finite step will do."""
    step = tl.where(old == -float("inf"), 0.0, old - new)
    factor = tl.exp2(step * LOG2_E)
    return factor * total, factor * (weighted + step * total)


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_PLACE)
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
    """Write the gradient over one block of a row's logits."""
    row = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    columns = tl.arange(0, BLOCK)
    places = logits + row.to(tl.int64) * row_stride + start + columns
    label = tl.load(labels + row) - first_column - start
    per_token += row
    logsumexp = tl.load(per_token)
    entropy = tl.load(per_token + token_stride)
    of_logprob = tl.load(per_token + 2 * token_stride) * scale
    of_entropy = tl.load(per_token + 3 * token_stride) * scale
    if start + BLOCK <= num_columns:
        logprobs = tl.load(places).to(tl.float32) * scale - logsumexp
        grad = _gradient(logprobs, entropy, of_logprob, of_entropy)
        grad += tl.where(columns == label, of_logprob, 0.0)
        tl.store(places, grad.to(logits.dtype.element_ty))
    else:
        is_column = columns < num_columns - start
        logprobs = tl.load(places, mask=is_column, other=0.0).to(tl.float32) * scale - logsumexp
        grad = _gradient(logprobs, entropy, of_logprob, of_entropy)
        grad += tl.where(columns == label, of_logprob, 0.0)
        tl.store(places, grad.to(logits.dtype.element_ty), mask=is_column)


@triton.jit
def _gradient(logprobs, entropy, of_logprob, of_entropy):  # noqa: ANN001, ANN202
    """Of logits that are not the label: d logprob = -p, d entropy = -p (log p + entropy)."""
    return -tl.exp2(logprobs * LOG2_E) * (of_logprob + of_entropy * (logprobs + entropy))
