"""The mapping between Megatron parameters and slices of Hugging Face tensors. Standard library only.

The table of a family (`hf.families`) is the single place that knows names and layouts; conversion, export and weight
sync read it through the functions here.

    ModelShape + (tp_size, tp_rank) + ExpertShare + layers  --parameters_of-->  Megatron parameters as HF pieces
    ModelShape                                              --hf_tensors----->  every tensor of an HF checkpoint
    ModelShape + engine (tp_size, tp_rank, ep_size)         --hf_shards------>  shards that an engine's rank holds

Each expert has HF tensors of its own, as checkpoints are published and as transformers 5 writes them (it fuses them
in memory only).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from megatron_prime.hf.families.table import HFTensor, ParameterRow, Placement
from megatron_prime.hf.layouts import (
    ExpertStyle,
    HFShard,
    NormStyle,
    ParameterPieces,
    Piece,
    dims_of,
    parameter_template,
    rows_of,
    shard_template,
)
from megatron_prime.hf.shape import ModelShape

__all__ = [
    "ExpertShare",
    "ExpertStyle",
    "HFShard",
    "ModelShape",
    "NormStyle",
    "ParameterPieces",
    "Piece",
    "check_expert_parallel",
    "check_tensor_parallel",
    "expert_range",
    "hf_shards",
    "hf_tensors",
    "layer_placements",
    "parameters_of",
]


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """The experts that a Megatron rank holds, and its part of each.

    Expert-parallel rank r has the r-th of `ep_size` equal blocks of experts. Each expert is split over `etp_size`
    ranks like a dense MLP over TP ranks; Megatron's own default for `etp_size` is the TP size. Raises ValueError
    for ranks outside of their sizes.
    """

    ep_size: int = 1
    ep_rank: int = 0
    etp_size: int = 1
    etp_rank: int = 0

    def __post_init__(self) -> None:
        for axis, size, rank in (("ep", self.ep_size, self.ep_rank), ("etp", self.etp_size, self.etp_rank)):
            if not 0 <= rank < size:
                raise ValueError(f"{axis}_rank {rank} is outside [0, {size})")


def parameters_of(
    shape: ModelShape,
    *,
    tp_size: int,
    tp_rank: int,
    layers: range | Sequence[range],
    is_first_stage: bool,
    is_last_stage: bool,
    norm_style: NormStyle = "local",
    experts: ExpertShare = ExpertShare(),
    expert_style: ExpertStyle = "sequential",
) -> tuple[ParameterPieces, ...]:
    """Return all parameters of a rank whose pipeline stage holds the HF layers `layers`.

    Megatron names count layers from 0 within the stage, and experts from 0 within the rank.

    Args:
        shape: The model.
        tp_size: Tensor-parallel size.
        tp_rank: Tensor-parallel rank.
        layers: HF layers of the stage. For a stage of several chunks (virtual pipeline) a range per chunk: names
            then begin with the chunk's index, as in a `ModuleList` of the chunks ("1.decoder.layers.0...").
        is_first_stage: Whether the stage holds the embedding.
        is_last_stage: Whether the stage holds the output layer.
        norm_style: "te" names the norms that Transformer Engine fuses into the next linear layer.
        experts: The rank's share of the experts.
        expert_style: "grouped" names the experts of TEGroupedMLP.

    Raises:
        ValueError: The shape cannot be split like that.
    """
    check_tensor_parallel(shape, tp_size)
    check_expert_parallel(shape, experts.ep_size, experts.etp_size)
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"tp_rank {tp_rank} is outside [0, {tp_size})")
    _check_styles(norm_style, expert_style)
    chunks = _chunks(shape, layers)

    def template(row: ParameterRow) -> ParameterPieces:
        size, rank = (
            (experts.etp_size, experts.etp_rank) if row.placement is Placement.EXPERT else (tp_size, tp_rank)
        )
        return parameter_template(shape, row, size, rank, norm_style, expert_style)

    templates = [(row.placement, template(row)) for row in rows_of(shape)]
    local_experts = expert_range(shape, experts.ep_size, experts.ep_rank)
    result: list[ParameterPieces] = []
    # The first chunk has the embedding and the last one the output layer, so their names get the prefixes of those
    # chunks.
    if is_first_stage:
        result += [
            _instantiate(t, chunks[0][0]) for placement, t in templates if placement is Placement.FIRST_STAGE
        ]
    for prefix, chunk in chunks:
        for local_layer, layer in enumerate(chunk):
            result += _layer(shape, templates, prefix, local_layer, layer, local_experts)
    if is_last_stage:
        # If the first stage is also the last, the output layer uses the embedding itself and there is no copy.
        ends = (
            (Placement.LAST_STAGE,) if is_first_stage else (Placement.LAST_STAGE, Placement.LAST_STAGE_COPY)
        )
        result += [_instantiate(t, chunks[-1][0]) for placement, t in templates if placement in ends]
    return tuple(result)


def hf_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of an HF checkpoint, in model order; no lm_head.weight if tied."""
    dims = {tensor: dims_of(shape, tensor) for row in rows_of(shape) for tensor in row.tensors}
    return {name: dims[tensor] for name, tensor, _ in _walk_hf(shape)}


def hf_shards(
    shape: ModelShape, *, tp_size: int, tp_rank: int, vocab_divisor: int = 64, ep_size: int = 1
) -> tuple[HFShard, ...]:
    """Return the shards that rank `tp_rank` of an engine with `tp_size` ranks holds, in model order.

    Column-parallel tensors are split along dim 0, row-parallel ones along dim 1, norms and routers are whole.
    Several ranks hold the same KV head when there are more ranks than KV heads. The vocabulary is padded to a
    multiple of `vocab_divisor` (SGLang pads to 64) before it is split; padding is in no shard, so a shard may be
    empty. Experts follow SGLang's order: `ep_size` equal blocks of consecutive ranks hold equal blocks of experts,
    and the ranks of a block split each of its experts. Raises ValueError when the shape cannot be split like that.
    """
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"engine tp_rank {tp_rank} is outside [0, {tp_size})")
    if tp_size % ep_size:
        raise ValueError(f"an engine's ep={ep_size} must divide its tp={tp_size}")
    check_expert_parallel(shape, ep_size, 1)
    moe_tp = tp_size // ep_size
    # Consecutive ranks share the experts of a block, as in SGLang.
    held = expert_range(shape, ep_size, tp_rank // moe_tp)
    shards = {
        tensor: shard_template(shape, tensor, moe_tp, tp_rank % moe_tp, vocab_divisor)
        if row.placement is Placement.EXPERT
        else shard_template(shape, tensor, tp_size, tp_rank, vocab_divisor)
        for row in rows_of(shape)
        for tensor in row.tensors
    }
    return tuple(
        HFShard(name, shards[tensor].dim, shards[tensor].hf_start, shards[tensor].length)
        for name, tensor, expert in _walk_hf(shape)
        if expert is None or expert in held
    )


def layer_placements(shape: ModelShape, layer: int) -> tuple[Placement, ...]:
    """Return the placements of the rows that an HF layer has."""
    if shape.has_experts(layer):
        return (Placement.LAYER, Placement.MOE_LAYER, Placement.EXPERT)
    return (Placement.LAYER, Placement.DENSE_LAYER)


def expert_range(shape: ModelShape, ep_size: int, ep_rank: int) -> range:
    """Return the experts of one of `ep_size` equal blocks."""
    num_local = shape.num_experts // ep_size
    return range(ep_rank * num_local, (ep_rank + 1) * num_local)


def check_tensor_parallel(shape: ModelShape, tp_size: int) -> None:
    """Raise ValueError unless a Megatron model of this shape can be split over `tp_size` ranks."""
    if tp_size < 1:
        raise ValueError(f"the tensor-parallel size must be positive, got {tp_size}")
    counts = {"KV heads": shape.num_query_groups}
    if shape.dense_layers or not shape.is_moe:
        # A model whose layers all have experts has no dense MLP to split.
        counts["FFN columns"] = shape.ffn_hidden_size
    for what, count in counts.items():
        if count % tp_size:
            raise ValueError(
                f"the {shape.family} model's {count} {what} cannot be split over {tp_size} tensor-parallel"
                " ranks: choose a size that divides them"
            )


def check_expert_parallel(shape: ModelShape, ep_size: int, etp_size: int) -> None:
    """Raise ValueError unless the experts can be divided over `ep_size` ranks and split over `etp_size`."""
    if ep_size < 1 or etp_size < 1:
        raise ValueError(f"ep={ep_size} and etp={etp_size} must be positive")
    if not shape.is_moe and ep_size * etp_size > 1:
        raise ValueError(f"ep={ep_size}, etp={etp_size}: the {shape.family} model has no experts")
    if shape.num_experts % ep_size or shape.moe_ffn_hidden_size % etp_size:
        raise ValueError(
            f"the {shape.family} model's {shape.num_experts} experts of {shape.moe_ffn_hidden_size} columns cannot be"
            f" divided over ep={ep_size} ranks and split over etp={etp_size}"
        )


def _check_styles(norm_style: str, expert_style: str) -> None:
    if norm_style not in get_args(NormStyle):
        raise ValueError(f"norm_style {norm_style!r} is not one of {', '.join(get_args(NormStyle))}")
    if expert_style not in get_args(ExpertStyle):
        raise ValueError(f"expert_style {expert_style!r} is not one of {', '.join(get_args(ExpertStyle))}")


def _chunks(shape: ModelShape, layers: range | Sequence[range]) -> list[tuple[str, range]]:
    """Return the prefix of names and the layers of each chunk. Raises ValueError for layers outside of the model."""
    chunks = [("", layers)] if isinstance(layers, range) else [(f"{i}.", c) for i, c in enumerate(layers)]
    for _, chunk in chunks:
        if chunk.step != 1 or not 0 <= chunk.start <= chunk.stop <= shape.num_layers:
            raise ValueError(f"layers {chunk} is not a part of the model's {shape.num_layers} layers")
    return chunks


def _layer(
    shape: ModelShape,
    templates: Sequence[tuple[Placement, ParameterPieces]],
    prefix: str,
    local_layer: int,
    layer: int,
    local_experts: range,
) -> list[ParameterPieces]:
    """Return the parameters of one layer."""
    placements = layer_placements(shape, layer)
    result: list[ParameterPieces] = []
    for placement, t in templates:
        if placement is Placement.EXPERT and placement in placements:
            result += [
                _instantiate(t, prefix, local_layer, layer, local_expert, expert)
                for local_expert, expert in enumerate(local_experts)
            ]
        elif placement in placements:
            result.append(_instantiate(t, prefix, local_layer, layer))
    return result


def _walk_hf(shape: ModelShape) -> Iterator[tuple[str, HFTensor, int | None]]:
    """Yield name, table entry and expert index (None outside of experts) of each tensor of a checkpoint."""
    rows = rows_of(shape)
    yield from (
        (t.name, t, None) for row in rows if row.placement is Placement.FIRST_STAGE for t in row.tensors
    )
    for layer in range(shape.num_layers):
        placements = layer_placements(shape, layer)
        for row in rows:
            if row.placement not in placements:
                continue
            for expert in range(shape.num_experts) if row.placement is Placement.EXPERT else (None,):
                for t in row.tensors:
                    yield t.name.format(layer=layer, expert=expert), t, expert
    yield from (
        (t.name, t, None) for row in rows if row.placement is Placement.LAST_STAGE for t in row.tensors
    )


def _instantiate(
    template: ParameterPieces,
    prefix: str,
    local_layer: int = 0,
    layer: int = 0,
    local_expert: int = 0,
    expert: int = 0,
) -> ParameterPieces:
    """Return a template's parameter with layer and expert filled in: local indices for Megatron, global for HF."""
    pieces = tuple(
        Piece(p.hf_name.format(layer=layer, expert=expert), p.dim, p.hf_start, p.local_start, p.length)
        for p in template.pieces
    )
    name = prefix + template.megatron_name.format(layer=local_layer, expert=local_expert)
    return replace(template, megatron_name=name, pieces=pieces)
