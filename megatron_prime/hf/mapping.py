"""Which rows and columns of which Hugging Face tensor make up each Megatron parameter. Stdlib only.

One table a family (`hf_tables.FAMILIES`) is the single place that knows names and layouts; conversion, export
and weight sync walk it through the functions here.

    ModelShape + (tp_size, tp_rank) + ExpertShare + layers  --parameters_of-->  Megatron parameters as HF pieces
    ModelShape                                              --hf_tensors----->  every tensor of an HF checkpoint
    ModelShape + engine (tp_size, tp_rank, ep_size)         --hf_shards------>  what an engine's rank holds

Experts have HF tensors of their own each, as checkpoints are published and as transformers 5 writes them (it
fuses them in memory alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from megatron_prime.hf.families import FAMILIES, HFTensor, Place, Row
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
from megatron_prime.hf.shape import ModelShape, RopeScaling, padded_vocab_size

__all__ = [
    "FAMILIES",
    "ExpertShare",
    "ExpertStyle",
    "HFShard",
    "ModelShape",
    "NormStyle",
    "ParameterPieces",
    "Piece",
    "RopeScaling",
    "check_expert_parallel",
    "check_tensor_parallel",
    "expert_range",
    "hf_shards",
    "hf_tensors",
    "layer_places",
    "padded_vocab_size",
    "parameters_of",
]


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """Which experts a Megatron rank holds, and which part of each.

    Expert-parallel rank r has the r-th of `ep_size` equal blocks of experts; each is split over `etp_size`
    ranks as a dense MLP is over TP ranks. (Megatron's own default for `etp_size` is the TP size.) Raises
    ValueError for ranks outside of their sizes.
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
    """All parameters of a rank whose pipeline stage holds the HF layers `layers`.

    Megatron names count layers from 0 within the stage, and experts from 0 within the rank. A stage of
    several chunks (virtual pipeline) gives a sequence of ranges: names then begin with the chunk's index, as
    in a `ModuleList` of the chunks ("1.decoder.layers.0..."). `norm_style` "te" names the norms that
    Transformer Engine fuses into the next linear layer; `expert_style` "grouped" names the experts of
    TEGroupedMLP. Raises ValueError when the shape cannot be divided so.
    """
    check_tensor_parallel(shape, tp_size)
    check_expert_parallel(shape, experts.ep_size, experts.etp_size)
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"tp_rank {tp_rank} is outside [0, {tp_size})")
    _check_styles(norm_style, expert_style)
    chunks = _chunks(shape, layers)

    def template(row: Row) -> ParameterPieces:
        size, rank = (experts.etp_size, experts.etp_rank) if row.place is Place.EXPERT else (tp_size, tp_rank)
        return parameter_template(shape, row, size, rank, norm_style, expert_style)

    templates = [(row.place, template(row)) for row in rows_of(shape)]
    local_experts = expert_range(shape, experts.ep_size, experts.ep_rank)
    result: list[ParameterPieces] = []
    if is_first_stage:
        result += [_placed(t, chunks[0][0]) for place, t in templates if place is Place.FIRST_STAGE]
    for prefix, chunk in chunks:
        for local_layer, layer in enumerate(chunk):
            result += _layer(shape, templates, prefix, local_layer, layer, local_experts)
    if is_last_stage:
        ends = (Place.LAST_STAGE,) if is_first_stage else (Place.LAST_STAGE, Place.LAST_STAGE_COPY)
        result += [_placed(t, chunks[-1][0]) for place, t in templates if place in ends]
    return tuple(result)


def hf_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an HF checkpoint, in model order; no lm_head.weight if tied."""
    dims = {tensor: dims_of(shape, tensor) for row in rows_of(shape) for tensor in row.tensors}
    return {name: dims[tensor] for name, tensor, _ in _walk_hf(shape)}


def hf_shards(
    shape: ModelShape, *, tp_size: int, tp_rank: int, vocab_divisor: int = 64, ep_size: int = 1
) -> tuple[HFShard, ...]:
    """What rank `tp_rank` of an inference engine with `tp_size` ranks holds, by HF name and in model order.

    Column-parallel tensors are split along dim 0, row-parallel ones along dim 1, norms and routers are whole;
    a KV head stands on several ranks when there are more ranks than KV heads. The vocabulary is padded to a
    multiple of `vocab_divisor` (SGLang pads to 64) before it is split; padding is in no shard, so that a
    shard may be empty. Experts go by SGLang's order: `ep_size` equal blocks of consecutive ranks hold equal
    blocks of experts, and the ranks of a block split each of its experts. Raises ValueError when the shape
    cannot be divided so.
    """
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"engine tp_rank {tp_rank} is outside [0, {tp_size})")
    if tp_size % ep_size:
        raise ValueError(f"an engine's ep={ep_size} must divide its tp={tp_size}")
    check_expert_parallel(shape, ep_size, 1)
    moe_tp = tp_size // ep_size
    held = expert_range(shape, ep_size, tp_rank // moe_tp)
    shards = {
        tensor: shard_template(shape, tensor, moe_tp, tp_rank % moe_tp, vocab_divisor)
        if row.place is Place.EXPERT
        else shard_template(shape, tensor, tp_size, tp_rank, vocab_divisor)
        for row in rows_of(shape)
        for tensor in row.tensors
    }
    return tuple(
        HFShard(name, shards[tensor].dim, shards[tensor].hf_start, shards[tensor].length)
        for name, tensor, expert in _walk_hf(shape)
        if expert is None or expert in held
    )


def layer_places(shape: ModelShape, layer: int) -> tuple[Place, ...]:
    """Which kinds of rows an HF layer has."""
    if shape.has_experts(layer):
        return (Place.LAYER, Place.MOE_LAYER, Place.EXPERT)
    return (Place.LAYER, Place.DENSE_LAYER)


def expert_range(shape: ModelShape, ep_size: int, ep_rank: int) -> range:
    """The experts of one of `ep_size` equal blocks."""
    num_local = shape.num_experts // ep_size
    return range(ep_rank * num_local, (ep_rank + 1) * num_local)


def check_tensor_parallel(shape: ModelShape, tp_size: int) -> None:
    """Raise ValueError unless a Megatron model of this shape can be split over `tp_size` ranks."""
    if tp_size < 1:
        raise ValueError(f"the tensor-parallel size must be positive, got {tp_size}")
    counts = {"KV heads": shape.num_query_groups}
    if shape.dense_layers or not shape.is_moe:
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
    """Each chunk's prefix of names and its layers, checked."""
    chunks = [("", layers)] if isinstance(layers, range) else [(f"{i}.", c) for i, c in enumerate(layers)]
    for _, chunk in chunks:
        if chunk.step != 1 or not 0 <= chunk.start <= chunk.stop <= shape.num_layers:
            raise ValueError(f"layers {chunk} is not a part of the model's {shape.num_layers} layers")
    return chunks


def _layer(
    shape: ModelShape,
    templates: Sequence[tuple[Place, ParameterPieces]],
    prefix: str,
    local_layer: int,
    layer: int,
    local_experts: range,
) -> list[ParameterPieces]:
    """The parameters of one layer."""
    places = layer_places(shape, layer)
    result: list[ParameterPieces] = []
    for place, t in templates:
        if place is Place.EXPERT and place in places:
            result += [
                _placed(t, prefix, local_layer, layer, local_expert, expert)
                for local_expert, expert in enumerate(local_experts)
            ]
        elif place in places:
            result.append(_placed(t, prefix, local_layer, layer))
    return result


def _walk_hf(shape: ModelShape) -> Iterator[tuple[str, HFTensor, int | None]]:
    """Each tensor of a checkpoint: its name, its entry in the table, and its expert."""
    rows = rows_of(shape)
    yield from ((t.name, t, None) for row in rows if row.place is Place.FIRST_STAGE for t in row.tensors)
    for layer in range(shape.num_layers):
        places = layer_places(shape, layer)
        for row in rows:
            if row.place not in places:
                continue
            for expert in range(shape.num_experts) if row.place is Place.EXPERT else (None,):
                for t in row.tensors:
                    yield t.name.format(layer=layer, expert=expert), t, expert
    yield from ((t.name, t, None) for row in rows if row.place is Place.LAST_STAGE for t in row.tensors)


def _placed(
    template: ParameterPieces,
    prefix: str,
    local_layer: int = 0,
    layer: int = 0,
    local_expert: int = 0,
    expert: int = 0,
) -> ParameterPieces:
    pieces = tuple(
        Piece(p.hf_name.format(layer=layer, expert=expert), p.dim, p.hf_start, p.local_start, p.length)
        for p in template.pieces
    )
    name = prefix + template.megatron_name.format(layer=local_layer, expert=local_expert)
    return replace(template, megatron_name=name, pieces=pieces)
