"""Split one table row over tensor-parallel ranks: pieces of a parameter, shards of an engine. Standard library only.

The functions return templates: names still contain `{layer}` and `{expert}`, because all layers and all experts are
split alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_prime.hf.families import FAMILIES
from megatron_prime.hf.families.table import HFTensor, ParameterRow, Placement, TensorLayout
from megatron_prime.hf.shape import ModelShape, padded_vocab_size

NormStyle = Literal["local", "te"]
"""local: norms are modules of their own; te: Transformer Engine fuses them into the next linear layer."""
ExpertStyle = Literal["sequential", "grouped"]
"""sequential: each expert is a module (SequentialMLP); grouped: one module holds a weight per expert (TEGroupedMLP)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice of an HF tensor that is a slice of a Megatron parameter.

    [hf_start, hf_start + length) of the HF tensor equals [local_start, local_start + length) of the local parameter,
    both along `dim`; all other dims are whole.
    """

    hf_name: str
    dim: int
    hf_start: int
    local_start: int
    length: int


@dataclass(frozen=True, slots=True)
class ParameterPieces:
    """A parameter of one Megatron rank. Elements that no piece covers are padding of the vocabulary."""

    megatron_name: str
    shape: tuple[int, ...]
    """Local shape on this rank."""
    pieces: tuple[Piece, ...]
    replicated_over_tp: bool
    """True if each TP rank of the stage holds the same values."""
    is_tied_copy: bool = False
    """True for the last stage's copy of a tied embedding, which the first stage holds too."""
    is_expert: bool = False
    """True if the split follows the rank's `ExpertShare` instead of its TP rank."""


@dataclass(frozen=True, slots=True)
class HFShard:
    """The slice [hf_start, hf_start + length) along `dim` of an HF tensor that one rank of an engine holds."""

    hf_name: str
    dim: int
    hf_start: int
    length: int


def rows_of(shape: ModelShape) -> list[ParameterRow]:
    """Return the rows of the model's family that apply to it."""
    return [row for row in FAMILIES[shape.family].rows if row.when is None or getattr(shape, row.when)]


def dims_of(shape: ModelShape, tensor: HFTensor) -> tuple[int, ...]:
    """Return the shape of the whole HF tensor."""
    return tuple(getattr(shape, name) for name in tensor.dims)


def parameter_template(
    shape: ModelShape,
    row: ParameterRow,
    tp_size: int,
    tp_rank: int,
    norm_style: NormStyle = "local",
    expert_style: ExpertStyle = "sequential",
) -> ParameterPieces:
    """Return a row's parameter on one of the `tp_size` ranks that split it; for an expert these are the ETP ranks."""
    name = row.megatron_name
    if norm_style == "te" and row.te_name:
        name = row.te_name
    if expert_style == "grouped" and row.grouped_name:
        name = row.grouped_name
    split = {
        TensorLayout.REPLICATED: _replicated,
        TensorLayout.VOCAB: _vocab,
        TensorLayout.CONCATENATED: _concatenated,
        TensorLayout.QKV_GROUPS: _qkv_groups,
    }[row.layout]
    length, pieces = split(shape, row.tensors, tp_size, tp_rank)
    local_shape = list(dims_of(shape, row.tensors[0]))
    local_shape[row.tensors[0].parallel_dim or 0] = length
    return ParameterPieces(
        name,
        tuple(local_shape),
        tuple(pieces),
        replicated_over_tp=row.layout is TensorLayout.REPLICATED,
        is_tied_copy=row.placement is Placement.LAST_STAGE_COPY,
        is_expert=row.placement is Placement.EXPERT,
    )


def shard_template(
    shape: ModelShape, tensor: HFTensor, tp_size: int, tp_rank: int, vocab_divisor: int
) -> HFShard:
    """Return the slice of a tensor that rank `tp_rank` of an engine with `tp_size` ranks holds.

    Raises ValueError when the tensor cannot be split like that.
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
        # A rank whose rows are all padding has an empty shard.
        start = min(tp_rank * (padded // tp_size), size)
        return HFShard(tensor.name, tensor.parallel_dim, start, min(padded // tp_size, size - start))
    num_units = getattr(shape, tensor.unit)
    unit_size = size // num_units
    if num_units % tp_size == 0:
        length = num_units // tp_size * unit_size
        return HFShard(tensor.name, tensor.parallel_dim, tp_rank * length, length)
    if tensor.unit == "num_query_groups" and tp_size % num_units == 0:
        # With more ranks than KV heads, consecutive ranks hold the same head.
        head = tp_rank // (tp_size // num_units)
        return HFShard(tensor.name, tensor.parallel_dim, head * unit_size, unit_size)
    raise ValueError(
        f"an engine with tp={tp_size} cannot split {tensor.name} evenly: {tensor.unit} is {num_units}"
    )


_Split = tuple[int, list[Piece]]
"""Local length along the tensors' parallel dim, and the pieces."""


def _replicated(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Split:
    (tensor,) = tensors
    size = dims_of(shape, tensor)[0]
    return size, [Piece(tensor.name, 0, 0, 0, size)]


def _vocab(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Split:
    (tensor,) = tensors
    num_rows = shape.padded_vocab_size(tp_size) // tp_size
    start = tp_rank * num_rows
    # The last ranks may have only a few rows of the vocabulary, or none; the rest is padding.
    length = min(num_rows, shape.vocab_size - start)
    return num_rows, [Piece(tensor.name, 0, start, 0, length)] if length > 0 else []


def _concatenated(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Split:
    pieces: list[Piece] = []
    local_start = 0
    for tensor in tensors:
        assert tensor.parallel_dim is not None, tensor.name
        length = dims_of(shape, tensor)[tensor.parallel_dim] // tp_size
        pieces.append(Piece(tensor.name, tensor.parallel_dim, tp_rank * length, local_start, length))
        local_start += length
    return local_start, pieces


def _qkv_groups(shape: ModelShape, tensors: tuple[HFTensor, ...], tp_size: int, tp_rank: int) -> _Split:
    num_local_groups = shape.num_query_groups // tp_size
    # Megatron interleaves by KV group. The lengths are the rows of each tensor per group: all query heads of the
    # group, one key head, one value head.
    lengths = [dims_of(shape, tensor)[0] // shape.num_query_groups for tensor in tensors]
    pieces: list[Piece] = []
    for index, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
        for local_group in range(num_local_groups):
            group = tp_rank * num_local_groups + local_group
            local_start = local_group * sum(lengths) + sum(lengths[:index])
            pieces.append(Piece(tensor.name, 0, group * length, local_start, length))
    return num_local_groups * sum(lengths), pieces
