"""Which rows and columns of which Hugging Face tensor make up each Megatron parameter. Stdlib only.

One table a family (`hf_tables.FAMILIES`) is the single place that knows names and layouts; conversion, export
and weight sync walk it through the functions here.

    ModelShape + (tp_size, tp_rank) + layer range  --parameters_of-->  Megatron parameters as HF pieces
    ModelShape                                     --hf_tensors----->  every tensor of an HF checkpoint
    ModelShape + engine (tp_size, tp_rank)         --hf_shards------>  what an engine's rank holds, by HF name
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_prime.models.hf_shape import ModelShape, RopeScaling, padded_vocab_size
from megatron_prime.models.hf_tables import FAMILIES, HFTensor, Layout, Place, Row

__all__ = [
    "FAMILIES",
    "HFShard",
    "ModelShape",
    "ParameterPieces",
    "Piece",
    "RopeScaling",
    "check_tensor_parallel",
    "hf_shards",
    "hf_tensors",
    "padded_vocab_size",
    "parameters_of",
]

NormStyle = Literal["local", "te"]


@dataclass(frozen=True, slots=True)
class Piece:
    """[hf_start, hf_start + length) of an HF tensor is [local_start, local_start + length) of a parameter.

    Both along `dim`; all other dims are whole.
    """

    hf_name: str
    dim: int
    hf_start: int
    local_start: int
    length: int


@dataclass(frozen=True, slots=True)
class ParameterPieces:
    """A parameter of one Megatron rank. Elements that no piece covers are padding of the vocabulary.

    `replicated_over_tp`: each TP rank of the stage holds the same values. `is_tied_copy`: the last stage's
    copy of a tied embedding, which the first stage holds too.
    """

    megatron_name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    replicated_over_tp: bool
    is_tied_copy: bool = False


@dataclass(frozen=True, slots=True)
class HFShard:
    """What a rank of an inference engine holds of an HF tensor: [hf_start, hf_start + length) along `dim`."""

    hf_name: str
    dim: int
    hf_start: int
    length: int


def parameters_of(
    shape: ModelShape,
    *,
    tp_size: int,
    tp_rank: int,
    layers: range,
    is_first_stage: bool,
    is_last_stage: bool,
    norm_style: NormStyle = "local",
) -> tuple[ParameterPieces, ...]:
    """All parameters of the model (or the virtual-pipeline chunk) that holds the HF layers `layers`.

    Megatron names count layers from 0 within the chunk. `norm_style` "te" names the norms that Transformer
    Engine fuses into the next linear layer. Raises ValueError when the shape cannot be divided over
    `tp_size` ranks.
    """
    check_tensor_parallel(shape, tp_size)
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"tp_rank {tp_rank} is outside [0, {tp_size})")
    if layers.step != 1 or not 0 <= layers.start <= layers.stop <= shape.num_layers:
        raise ValueError(f"layers {layers} is not a part of the model's {shape.num_layers} layers")
    if norm_style not in get_args(NormStyle):
        raise ValueError(f"norm_style {norm_style!r} is not one of {', '.join(get_args(NormStyle))}")
    wanted = {
        Place.FIRST_STAGE: is_first_stage,
        Place.LAST_STAGE: is_last_stage,
        Place.LAST_STAGE_COPY: is_last_stage and not is_first_stage,
    }
    rows = _rows(shape)
    result = [
        _parameter(shape, row, tp_size, tp_rank, norm_style)
        for row in rows
        if row.place is Place.FIRST_STAGE and wanted[row.place]
    ]
    templates = [
        _parameter(shape, row, tp_size, tp_rank, norm_style) for row in rows if row.place is Place.LAYER
    ]
    for local_layer, layer in enumerate(layers):
        result += [_at_layer(template, local_layer, layer) for template in templates]
    result += [
        _parameter(shape, row, tp_size, tp_rank, norm_style)
        for row in rows
        if row.place in (Place.LAST_STAGE, Place.LAST_STAGE_COPY) and wanted[row.place]
    ]
    return tuple(result)


def hf_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an HF checkpoint, in model order; no lm_head.weight if tied."""
    return {tensor.name: _dims(shape, tensor) for tensor in _walk_hf(shape)}


def hf_shards(
    shape: ModelShape, *, tp_size: int, tp_rank: int, vocab_divisor: int = 64
) -> tuple[HFShard, ...]:
    """What rank `tp_rank` of an inference engine with `tp_size` ranks holds, by HF name and in model order.

    Column-parallel tensors are split along dim 0, row-parallel ones along dim 1, norms are whole; a KV head
    stands on several ranks when there are more ranks than KV heads. The vocabulary is padded to a multiple
    of `vocab_divisor` (SGLang pads to 64) before it is split; padding is in no shard, so that a shard may
    be empty. Raises ValueError when the shape cannot be divided so.
    """
    if not 0 <= tp_rank < tp_size:
        raise ValueError(f"engine tp_rank {tp_rank} is outside [0, {tp_size})")
    return tuple(_engine_shard(shape, tensor, tp_size, tp_rank, vocab_divisor) for tensor in _walk_hf(shape))


def check_tensor_parallel(shape: ModelShape, tp_size: int) -> None:
    """Raise ValueError unless a Megatron model of this shape can be split over `tp_size` ranks."""
    if tp_size < 1:
        raise ValueError(f"the tensor-parallel size must be positive, got {tp_size}")
    for what, count in (("KV heads", shape.num_query_groups), ("FFN columns", shape.ffn_hidden_size)):
        if count % tp_size:
            raise ValueError(
                f"the {shape.family} model's {count} {what} cannot be split over {tp_size} tensor-parallel"
                " ranks: choose a size that divides them"
            )


def _rows(shape: ModelShape) -> list[Row]:
    return [row for row in FAMILIES[shape.family] if row.when is None or getattr(shape, row.when)]


def _walk_hf(shape: ModelShape) -> Iterator[HFTensor]:
    rows = _rows(shape)
    yield from (t for row in rows if row.place is Place.FIRST_STAGE for t in row.tensors)
    per_layer = [t for row in rows if row.place is Place.LAYER for t in row.tensors]
    for layer in range(shape.num_layers):
        for t in per_layer:
            yield HFTensor(t.name.format(layer=layer), t.dims, t.parallel_dim, t.unit)
    yield from (t for row in rows if row.place is Place.LAST_STAGE for t in row.tensors)


def _dims(shape: ModelShape, tensor: HFTensor) -> tuple[int, ...]:
    return tuple(getattr(shape, name) for name in tensor.dims)


def _parameter(
    shape: ModelShape, row: Row, tp_size: int, tp_rank: int, norm_style: NormStyle
) -> ParameterPieces:
    name = row.te_name if norm_style == "te" and row.te_name else row.megatron_name
    lay_out = {
        Layout.REPLICATED: _replicated,
        Layout.VOCAB: _vocab,
        Layout.CONCATENATED: _concatenated,
        Layout.QKV_GROUPS: _qkv_groups,
    }[row.layout]
    length, pieces = lay_out(shape, row.tensors, tp_size, tp_rank)
    local_shape = list(_dims(shape, row.tensors[0]))
    local_shape[row.tensors[0].parallel_dim or 0] = length
    return ParameterPieces(
        name,
        tuple(local_shape),
        tuple(pieces),
        replicated_over_tp=row.layout is Layout.REPLICATED,
        is_tied_copy=row.place is Place.LAST_STAGE_COPY,
    )


def _at_layer(template: ParameterPieces, local_layer: int, layer: int) -> ParameterPieces:
    pieces = tuple(
        Piece(p.hf_name.format(layer=layer), p.dim, p.hf_start, p.local_start, p.length)
        for p in template.pieces
    )
    name = template.megatron_name.format(layer=local_layer)
    return ParameterPieces(name, template.shape, pieces, template.replicated_over_tp)


# Each lay-out function returns the local length along the tensors' parallel dim, and the pieces.
_Laid = tuple[int, list[Piece]]


def _replicated(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Laid:
    (tensor,) = tensors
    size = _dims(shape, tensor)[0]
    return size, [Piece(tensor.name, 0, 0, 0, size)]


def _vocab(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Laid:
    (tensor,) = tensors
    num_rows = shape.padded_vocab_size(tp_size) // tp_size
    start = tp_rank * num_rows
    length = min(num_rows, shape.vocab_size - start)
    return num_rows, [Piece(tensor.name, 0, start, 0, length)] if length > 0 else []


def _concatenated(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Laid:
    pieces: list[Piece] = []
    local_start = 0
    for tensor in tensors:
        assert tensor.parallel_dim is not None, tensor.name
        length = _dims(shape, tensor)[tensor.parallel_dim] // tp_size
        pieces.append(Piece(tensor.name, tensor.parallel_dim, tp_rank * length, local_start, length))
        local_start += length
    return local_start, pieces


def _qkv_groups(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Laid:
    num_local_groups = shape.num_query_groups // tp_size
    # Rows that each tensor gives to one group: all query heads of the group, one key head, one value head.
    lengths = [_dims(shape, tensor)[0] // shape.num_query_groups for tensor in tensors]
    pieces: list[Piece] = []
    for index, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        for local_group in range(num_local_groups):
            group = tp_rank * num_local_groups + local_group
            local_start = local_group * sum(lengths) + sum(lengths[:index])
            pieces.append(Piece(tensor.name, 0, group * length, local_start, length))
    return num_local_groups * sum(lengths), pieces


def _engine_shard(
    shape: ModelShape, tensor: HFTensor, tp_size: int, tp_rank: int, vocab_divisor: int
) -> HFShard:
    dims = _dims(shape, tensor)
    if tensor.parallel_dim is None:
        return HFShard(tensor.name, 0, 0, dims[0])
    size = dims[tensor.parallel_dim]
    if tensor.unit is None:
        padded = padded_vocab_size(size, vocab_divisor, 1)
        if padded % tp_size:
            raise ValueError(
                f"an engine with tp={tp_size} cannot split a vocabulary of {size} padded to {padded}: choose"
                f" a tp that divides it, or another vocab_divisor ({vocab_divisor})"
            )
        start = min(tp_rank * (padded // tp_size), size)
        return HFShard(tensor.name, tensor.parallel_dim, start, min(padded // tp_size, size - start))
    num_units = getattr(shape, tensor.unit)
    unit_size = size // num_units
    if num_units % tp_size == 0:
        length = num_units // tp_size * unit_size
        return HFShard(tensor.name, tensor.parallel_dim, tp_rank * length, length)
    if tensor.unit == "num_query_groups" and tp_size % num_units == 0:
        head = tp_rank // (tp_size // num_units)
        return HFShard(tensor.name, tensor.parallel_dim, head * unit_size, unit_size)
    raise ValueError(
        f"an engine with tp={tp_size} cannot split {tensor.name} evenly: {tensor.unit} is {num_units}"
    )
