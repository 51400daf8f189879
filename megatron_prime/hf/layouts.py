"""How one row of the tables is laid out over ranks: pieces of a parameter, shards of an engine. Stdlib only.

What comes from here are templates: their names still hold `{layer}` and `{expert}`, since every layer, and every
expert, is cut alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_prime.hf.families import FAMILIES, HFTensor, Layout, Place, Row
from megatron_prime.hf.shape import ModelShape, padded_vocab_size

NormStyle = Literal["local", "te"]
"""Norms stand alone, or Transformer Engine fuses them into the next linear layer."""
ExpertStyle = Literal["sequential", "grouped"]
"""Each expert is a module (SequentialMLP), or one module holds a weight for each (TEGroupedMLP)."""


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
    copy of a tied embedding, which the first stage holds too. `is_expert`: its place follows from the rank's
    `ExpertShare` and not from its TP rank.
    """

    megatron_name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    replicated_over_tp: bool
    is_tied_copy: bool = False
    is_expert: bool = False


@dataclass(frozen=True, slots=True)
class HFShard:
    """What a rank of an inference engine holds of an HF tensor: [hf_start, hf_start + length) along `dim`."""

    hf_name: str
    dim: int
    hf_start: int
    length: int


def rows_of(shape: ModelShape) -> list[Row]:
    """The rows of a model's family that apply to it."""
    return [row for row in FAMILIES[shape.family] if row.when is None or getattr(shape, row.when)]


def dims_of(shape: ModelShape, tensor: HFTensor) -> tuple[int, ...]:
    """The whole tensor's shape."""
    return tuple(getattr(shape, name) for name in tensor.dims)


def parameter_template(
    shape: ModelShape,
    row: Row,
    tp_size: int,
    tp_rank: int,
    norm_style: NormStyle = "local",
    expert_style: ExpertStyle = "sequential",
) -> ParameterPieces:
    """A row's parameter on one of the `tp_size` ranks that split it (of an expert's row: expert TP ranks)."""
    name = row.megatron_name
    if norm_style == "te" and row.te_name:
        name = row.te_name
    if expert_style == "grouped" and row.grouped_name:
        name = row.grouped_name
    lay_out = {
        Layout.REPLICATED: _replicated,
        Layout.VOCAB: _vocab,
        Layout.CONCATENATED: _concatenated,
        Layout.QKV_GROUPS: _qkv_groups,
    }[row.layout]
    length, pieces = lay_out(shape, row.tensors, tp_size, tp_rank)
    local_shape = list(dims_of(shape, row.tensors[0]))
    local_shape[row.tensors[0].parallel_dim or 0] = length
    return ParameterPieces(
        name,
        tuple(local_shape),
        tuple(pieces),
        replicated_over_tp=row.layout is Layout.REPLICATED,
        is_tied_copy=row.place is Place.LAST_STAGE_COPY,
        is_expert=row.place is Place.EXPERT,
    )


def shard_template(
    shape: ModelShape, tensor: HFTensor, tp_size: int, tp_rank: int, vocab_divisor: int
) -> HFShard:
    """What rank `tp_rank` of `tp_size` engine ranks holds of a tensor; the name is the table's.

    Raises ValueError when it cannot be divided so.
    """
    dims = dims_of(shape, tensor)
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


# Each lay-out function returns the local length along the tensors' parallel dim, and the pieces.
_Laid = tuple[int, list[Piece]]


def _replicated(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Laid:
    (tensor,) = tensors
    size = dims_of(shape, tensor)[0]
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
        length = dims_of(shape, tensor)[tensor.parallel_dim] // tp_size
        pieces.append(Piece(tensor.name, tensor.parallel_dim, tp_rank * length, local_start, length))
        local_start += length
    return local_start, pieces


def _qkv_groups(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Laid:
    num_local_groups = shape.num_query_groups // tp_size
    # Rows that each tensor gives to one group: all query heads of the group, one key head, one value head.
    lengths = [dims_of(shape, tensor)[0] // shape.num_query_groups for tensor in tensors]
    pieces: list[Piece] = []
    for index, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        for local_group in range(num_local_groups):
            group = tp_rank * num_local_groups + local_group
            local_start = local_group * sum(lengths) + sum(lengths[:index])
            pieces.append(Piece(tensor.name, 0, group * length, local_start, length))
    return num_local_groups * sum(lengths), pieces
