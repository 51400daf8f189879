"""Inverse frequencies of rotary position embeddings, bit for bit those of transformers.

At position 131,071 one rounding error of a frequency turns the fastest dimensions by 0.01 radian. So the operations and
their order in float32 are those of transformers, and they run on the CPU, where transformers computes them, too. Of
Megatron's own scalings, Llama 3's is equal and used; its YaRN has no `attention_factor`.
"""

import math

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from megatron_prime.hf.rope import LinearScaling, Llama3Scaling, YarnScaling
from megatron_prime.hf.shape import ModelShape


def set_frequencies(rotary: RotaryEmbedding, shape: ModelShape) -> None:
    """Give Megatron's rotary embedding the frequencies of a model."""
    frequencies, scaling = _unscaled_or_own(shape), shape.rope_scaling
    if isinstance(scaling, Llama3Scaling):
        frequencies = rotary._apply_scaling(
            frequencies,
            factor=scaling.factor,  # type: ignore[arg-type]
            low_freq_factor=scaling.low_freq_factor,  # type: ignore[arg-type]
            high_freq_factor=scaling.high_freq_factor,  # type: ignore[arg-type]
            original_max_position_embeddings=scaling.original_max_position_embeddings,
        )
    rotary.inv_freq = frequencies.to(rotary.inv_freq.device)


def softmax_scale(shape: ModelShape) -> float | None:
    """Return the factor of attention scores; None for the usual 1 / sqrt(head_dim).

    YaRN multiplies rotated queries and keys by its attention factor. Every dimension is rotated, so multiplying the
    scores by its square is the same, and works with kernels for rotation that know no factor.
    """
    scaling = shape.rope_scaling
    if not isinstance(scaling, YarnScaling) or scaling.attention_factor == 1.0:
        return None
    return scaling.attention_factor**2 / math.sqrt(shape.head_dim)


def _unscaled_or_own(shape: ModelShape) -> torch.Tensor:
    """Return the angle per position of each pair of dimensions, radians: float32 [head_dim / 2], on the CPU."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device="cpu") / shape.head_dim
    inverse = shape.rope_theta**exponents
    if isinstance(shape.rope_scaling, YarnScaling):
        return _yarn(inverse, shape, shape.rope_scaling)
    frequencies = 1.0 / inverse
    return (
        frequencies / shape.rope_scaling.factor
        if isinstance(shape.rope_scaling, LinearScaling)
        else frequencies
    )


def _yarn(inverse: torch.Tensor, shape: ModelShape, scaling: YarnScaling) -> torch.Tensor:
    """Return a mixture of kept and interpolated frequencies, by dimension (arXiv 2309.00071, section 3.2)."""
    bounds = [_dimension_of(turns, shape, scaling) for turns in (scaling.beta_fast, scaling.beta_slow)]
    if scaling.truncate:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    first, last = max(bounds[0], 0), min(bounds[1], shape.head_dim - 1)
    if first == last:
        last += 0.001  # as in transformers, against a division by zero
    places = torch.arange(shape.head_dim // 2, dtype=torch.float32, device="cpu")
    kept = 1 - torch.clamp((places - first) / (last - first), 0, 1)
    return (1.0 / (scaling.factor * inverse)) * (1 - kept) + (1.0 / inverse) * kept


def _dimension_of(turns: float, shape: ModelShape, scaling: YarnScaling) -> float:
    """Return the dimension, not a whole number, that makes so many turns over the original context."""
    wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
    return shape.head_dim * math.log(wavelength) / (2 * math.log(shape.rope_theta))
