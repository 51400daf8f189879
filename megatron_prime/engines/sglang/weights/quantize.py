"""Block FP8 at the sender: a slice becomes float8_e4m3fn values and one scale a block, half the bytes of bf16.

The form is that of DeepSeek's checkpoints and SGLang's block-FP8 layers: `weight` [N, K] in e4m3 beside
`weight_scale_inv` [ceil(N / 128), ceil(K / 128)] in float32, and value = weight * weight_scale_inv of its block.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from megatron_prime.engines.sglang.weights.alignment import BLOCK_SIZE, is_aligned

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
"""448."""
_SMALLEST_AMAX = 2.0**-100
"""Keeps the scale of a block of zeros a normal float."""


class QuantizedBlocks(NamedTuple):
    """A matrix, or whole blocks of one, in block FP8."""

    weight: torch.Tensor
    """float8_e4m3fn [N, K]."""
    scale_inv: torch.Tensor
    """float32 [ceil(N / block), ceil(K / block)]: what a value is multiplied by to get the weight back."""


@torch.no_grad()
def quantize_blocks(weight: torch.Tensor, block_size: int = BLOCK_SIZE) -> QuantizedBlocks:
    """Quantize a matrix [N, K] of any float dtype; blocks at its ends may be smaller.

    A value w of a block with scale s comes back with an error of at most max(|w| / 16, s / 1024). NaN and inf
    in a block make its scale NaN or inf. Raises ValueError unless there are two dims.
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
    """Quantize what a transfer sends of a parameter: [local_start, local_start + length) along `dim`.

    It is [hf_start, hf_start + length) of an HF tensor with `hf_size` along `dim`; its scales are those from
    `hf_start // block_size` on. Equals the same part of the quantized whole tensor, bit for bit. Raises
    ValueError when the slice cuts a block of the whole tensor.
    """
    if not is_aligned(hf_start, length, hf_size, block_size):
        raise ValueError(
            f"[{hf_start}, {hf_start + length}) of {hf_size} cuts a block of {block_size}: its scale would need values"
            " of another rank (see alignment.check_aligned)"
        )
    return quantize_blocks(parameter.detach().narrow(dim, local_start, length), block_size)


def dequantize_blocks(
    blocks: QuantizedBlocks, dtype: torch.dtype = torch.float32, block_size: int = BLOCK_SIZE
) -> torch.Tensor:
    """The matrix [N, K] back, in `dtype`."""
    num_rows, num_columns = blocks.weight.shape
    scales = blocks.scale_inv.repeat_interleave(block_size, 0).repeat_interleave(block_size, 1)
    return (blocks.weight.float() * scales[:num_rows, :num_columns]).to(dtype)
