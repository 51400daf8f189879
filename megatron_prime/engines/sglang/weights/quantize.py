"""Block FP8 quantization on the sender: float8_e4m3fn values and one scale per block take half the bytes of bf16.

The format is that of DeepSeek's checkpoints and SGLang's block-FP8 layers: `weight` [N, K] in e4m3 beside
`weight_scale_inv` [ceil(N / 128), ceil(K / 128)] in float32, and value = weight * weight_scale_inv of its block.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from megatron_prime.engines.sglang.loader.wire import BLOCK_SIZE
from megatron_prime.engines.sglang.weights.alignment import is_aligned

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
"""The largest finite value, 448."""
_SMALLEST_AMAX = 2.0**-100
"""Lower bound of a block's largest value, which keeps the scale of a block of zeros a normal float."""


class QuantizedBlocks(NamedTuple):
    """A matrix, or whole blocks of a matrix, in block FP8."""

    weight: torch.Tensor
    """float8_e4m3fn [N, K]."""
    scale_inv: torch.Tensor
    """float32 [ceil(N / block), ceil(K / block)]. Multiply the values of a block by it to restore the weights."""


@torch.no_grad()
def quantize_blocks(weight: torch.Tensor, block_size: int = BLOCK_SIZE) -> QuantizedBlocks:
    """Quantize a matrix [N, K] of any float dtype; blocks at its ends may be smaller.

    A value w of a block with scale s is restored with an error of at most max(|w| / 16, s / 1024). NaN and inf in a
    block make its scale NaN or inf. Raises ValueError unless `weight` has two dims.
    """
    if weight.dim() != 2:
        raise ValueError(f"only matrices are quantized in blocks, got the shape {tuple(weight.shape)}")
    num_rows, num_columns = weight.shape
    padding = (0, -num_columns % block_size, 0, -num_rows % block_size)
    padded = F.pad(weight.float(), padding)
    blocks = padded.unflatten(0, (-1, block_size)).unflatten(2, (-1, block_size))
    scale_inv = blocks.abs().amax(dim=(1, 3)).clamp_min(_SMALLEST_AMAX) / FP8_MAX
    scaled = (blocks / scale_inv[:, None, :, None]).view_as(padded)
    quantized = scaled[:num_rows, :num_columns].to(torch.float8_e4m3fn)
    return QuantizedBlocks(quantized, scale_inv)


def quantize_slice(
    parameter: torch.Tensor,
    *,
    dim: int,
    local_start: int,
    length: int,
    hf_start: int,
    hf_size: int,
    block_size: int = BLOCK_SIZE,
) -> QuantizedBlocks:
    """Quantize a slice of a parameter; the result equals the same part of the quantized whole tensor, bit for bit.

    Args:
        parameter: the matrix that holds the slice.
        dim: the dim that the tensor is cut along.
        local_start: first row or column of the slice in the parameter.
        length: rows or columns of the slice.
        hf_start: first row or column of the slice in the HF tensor.
        hf_size: rows or columns of the HF tensor along `dim`.
        block_size: rows and columns of a block.

    Raises:
        ValueError: the slice cuts a block of the HF tensor.
    """
    if not is_aligned(hf_start, length, hf_size, block_size):
        raise ValueError(
            f"[{hf_start}, {hf_start + length}) of {hf_size} cuts a block of {block_size}: its scale would need values"
            " of another rank (see alignment.check_aligned)"
        )
    return quantize_blocks(parameter.detach().narrow(dim, local_start, length), block_size)
