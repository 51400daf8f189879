"""Memory of the FP8 layers of Transformer Engine beside, or instead of, that of bf16 ones.

Counted from the sources of Transformer Engine 2.9 and megatron-core 0.16; no GPU has confirmed it. Bytes of a copy of
a linear layer's weight of M rows and K columns (`make_empty` of the quantizers in
transformer_engine/pytorch/tensor/):

    delayed, tensorwise    M K                                and a float32 scale for both copies
    blockwise              M K + 4 ceil(M/128) up4(ceil(K/128))      up4: rounded up to a multiple of 4
    mxfp8                  M K + up128(M) up4(K/32)

Of the transposed copy, M and K change places. Norms, biases, routers, embedding and output layer stay in bf16.

- A layer keeps its copy from its first pass on, for the whole run, wherever its bf16 weight is: megatron-core passes
  `is_first_microbatch` to each layer, whereupon `get_weight_workspace` (module/base.py) keeps the copy in the module
  and only renews its values in the first microbatch of a step.
- The transposed copy is made where there is a backward pass, and then stays too (`columnwise_usage` in
  module/linear.py); the reference has none. Blackwell needs none with delayed and tensorwise, but is counted alike.
- Weights that are held in FP8 only (`fp8.primary_weights`) are such a copy, with the transposed one where gradients
  were enabled when they were made, as they are for PRM and reference (`reset_parameters` in module/base.py).
- delayed keeps the maxima of `amax_history_len` passes and a scale for five tensors of a layer, in float32: input,
  weight and output, and two gradients.
- A layer keeps its input for the backward pass in FP8 (`saved_inputmat`), with a scale for 128 elements (blockwise, 4
  bytes) or 32 (mxfp8, 1 byte).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.hf.mapping import ExpertShare, ModelShape, parameters_of
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.resharding.layouts import TrainingLayout

INPUT_BYTES = {"delayed": 1.0, "tensorwise": 1.0, "blockwise": 1 + 4 / 128, "mxfp8": 1 + 1 / 32}
"""Bytes of an element of the input that a layer keeps, by recipe."""
HISTORIES = 5
"""Tensors of a layer whose maxima delayed scaling keeps."""


@dataclass(frozen=True)
class Fp8Weights:
    """The FP8 weights of a role on a rank."""

    replaced: int
    """Number of weights that are not held in bf16."""
    copies: int
    """Bytes of the copies, with scales and histories."""


def is_fp8_layer(fp8: Fp8Config, role: str, layer: int, num_layers: int) -> bool:
    """Return whether a layer of a role, counted from 0 over all stages, computes in FP8."""
    end = num_layers - fp8.bf16_layers_at_end
    return fp8.recipe_of(role) != "none" and fp8.bf16_layers_at_start <= layer < end


def fp8_weights(run: PlannedRun, role: str, stage: int) -> Fp8Weights:
    """Return the FP8 weights of a role on a rank of a pipeline stage; see the module."""
    fp8, shape = run.config.fp8, run.shapes[role]
    recipe, is_primary = fp8.recipe_of(role), fp8.has_primary_weights(role)
    replaced = copies = 0
    for chunk in run.layout.stage_layers(shape)[stage]:
        for layer in chunk:
            if not is_fp8_layer(fp8, role, layer, shape.num_layers):
                continue
            for rows, columns in linear_weights(shape, run.layout, shape.has_experts(layer)):
                copies += copy_bytes(recipe, rows, columns)
                if is_primary or role in run.trained:
                    copies += transposed_bytes(recipe, rows, columns)
                if recipe == "delayed":
                    copies += HISTORIES * (fp8.amax_history_len + 1) * 4
                replaced += rows * columns * is_primary
    return Fp8Weights(replaced, copies)


@lru_cache(maxsize=1024)
def linear_weights(
    shape: ModelShape, layout: TrainingLayout, has_experts: bool
) -> tuple[tuple[int, int], ...]:
    """Return rows and columns on a rank of the weight of each linear layer in a layer with or without experts."""
    layer = next(i for i in range(shape.num_layers) if shape.has_experts(i) == has_experts)
    return tuple(_linear_weights(shape, layout, layer))


def _linear_weights(shape: ModelShape, layout: TrainingLayout, layer: int) -> Iterator[tuple[int, int]]:
    for parameter in parameters_of(
        shape,
        tp_size=layout.tp,
        tp_rank=0,
        layers=range(layer, layer + 1),
        is_first_stage=False,
        is_last_stage=False,
        experts=ExpertShare(layout.ep, 0, layout.etp, 0),
    ):
        if ".linear_" in parameter.megatron_name and len(parameter.shape) == 2:
            rows, columns = parameter.shape
            yield rows, columns


def copy_bytes(recipe: str, rows: int, columns: int) -> int:
    """Return the bytes of an FP8 copy of a weight with its scales."""
    if recipe == "blockwise":
        return rows * columns + 4 * -(-rows // 128) * _up(-(-columns // 128), 4)
    if recipe == "mxfp8":
        return rows * columns + _up(rows, 128) * _up(columns // 32, 4)
    return rows * columns + 4


def transposed_bytes(recipe: str, rows: int, columns: int) -> int:
    """Return the bytes of the transposed copy; a scale of the whole tensor is that of the other copy."""
    if recipe in ("delayed", "tensorwise"):
        return rows * columns
    return copy_bytes(recipe, columns, rows)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
