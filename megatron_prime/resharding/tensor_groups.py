"""Groups of HF tensors with the same layout on every rank, so that a group is planned only once. Standard library only.

A large mixture of experts has 70 thousand tensors but only a few hundred groups: one per row of the family's table,
pipeline stage, and block of experts that neither the training job nor the engines divide further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from megatron_prime.hf.families.table import LAYER_PLACEMENTS, HFTensor, ParameterRow, Placement
from megatron_prime.hf.layouts import (
    ExpertStyle,
    HFShard,
    NormStyle,
    ParameterPieces,
    dims_of,
    parameter_template,
    rows_of,
    shard_template,
)
from megatron_prime.hf.mapping import (
    ModelShape,
    check_expert_parallel,
    check_tensor_parallel,
    layer_placements,
)
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout


class ParameterLocation(NamedTuple):
    """Location of an interval on a rank: the name template of the parameter, and the first row or column in it."""

    param: str
    local_start: int


class Member(NamedTuple):
    """One tensor of a group: its layer and expert, as counted in HF names and on its training rank."""

    prefix: str = ""
    local_layer: int = 0
    layer: int = 0
    local_expert: int = 0
    expert: int = 0

    def hf_name(self, template: str) -> str:
        """Return the name of the HF tensor."""
        return template.format(layer=self.layer, expert=self.expert)

    def param(self, template: str) -> str:
        """Return the name of the Megatron parameter on its rank."""
        return self.prefix + template.format(layer=self.local_layer, expert=self.local_expert)


@dataclass(frozen=True, slots=True)
class Interval:
    """The interval [start, start + length) of an HF tensor, and its location on each rank that holds it, by rank."""

    start: int
    length: int
    sources: dict[int, ParameterLocation]


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are split in the same way and held by the same ranks."""

    tensor: HFTensor
    dims: tuple[int, ...]
    stage: int
    members: tuple[Member, ...]
    intervals: tuple[Interval, ...]
    expert_block: range | None = None
    """Experts of the members; None for tensors that do not belong to an expert."""

    @property
    def dim(self) -> int:
        """Dim along which the tensors are split."""
        return self.tensor.parallel_dim or 0

    @cached_property
    def slice_elements(self) -> int:
        """Number of elements in one row (or column)."""
        return math.prod(self.dims) // self.dims[self.dim]

    def engine_shard(self, shape: ModelShape, engines: EngineLayout, tp_rank: int) -> HFShard | None:
        """Return the shard of each member that an engine rank holds; None for experts on other ranks."""
        if self.expert_block is None:
            return shard_template(shape, self.tensor, engines.tp, tp_rank, engines.vocab_divisor)
        ep_rank, expert_tp_rank = divmod(tp_rank, engines.expert_tp)
        if self.expert_block.start * engines.ep // shape.num_experts != ep_rank:
            return None
        return shard_template(shape, self.tensor, engines.expert_tp, expert_tp_rank, engines.vocab_divisor)


def tensor_groups(
    shape: ModelShape,
    training: TrainingLayout,
    engines: EngineLayout,
    norm_style: NormStyle = "local",
    expert_style: ExpertStyle = "sequential",
) -> tuple[TensorGroup, ...]:
    """Return groups that contain every HF tensor once.

    Raises:
        ValueError: the shape cannot be divided as a layout requires.
    """
    check_tensor_parallel(shape, training.tp)
    check_expert_parallel(shape, training.ep, training.etp)
    check_expert_parallel(shape, engines.ep, 1)
    stages = training.stage_layers(shape)
    rows = rows_of(shape)
    groups: list[TensorGroup] = []
    for row in rows:
        # Experts have a tensor parallel size of their own.
        size = training.etp if row.placement is Placement.EXPERT else training.tp
        templates = [
            parameter_template(shape, row, size, rank, norm_style, expert_style) for rank in range(size)
        ]
        if row.placement in LAYER_PLACEMENTS:
            for stage, chunks in enumerate(stages):
                for block in (
                    _expert_blocks(shape, training, engines) if row.placement is Placement.EXPERT else (None,)
                ):
                    members = _members(shape, training, row.placement, chunks, block)
                    if members:
                        groups += _groups(shape, training, row, templates, stage, members, block)
        # The last stage's copy of a tied embedding is not a tensor of its own: it is added as a source below.
        elif row.placement is not Placement.LAST_STAGE_COPY:
            stage = 0 if row.placement is Placement.FIRST_STAGE else training.pp - 1
            groups += _groups(shape, training, row, templates, stage, (Member(),), None)
    copies = _tied_copies(shape, training)
    return tuple(_with_copies(group, copies) if group.tensor.name in copies else group for group in groups)


def _prefix(training: TrainingLayout, chunk: int) -> str:
    return f"{chunk}." if training.vpp > 1 else ""


def _expert_blocks(shape: ModelShape, training: TrainingLayout, engines: EngineLayout) -> Iterator[range]:
    """Yield blocks of experts that are whole on both sides: split wherever the training job or the engines do."""
    steps = {shape.num_experts // training.ep, shape.num_experts // engines.ep}
    bounds = sorted({bound for step in steps for bound in range(0, shape.num_experts + 1, step)})
    yield from map(range, bounds, bounds[1:])


def _members(
    shape: ModelShape,
    training: TrainingLayout,
    placement: Placement,
    chunks: tuple[range, ...],
    block: range | None,
) -> tuple[Member, ...]:
    """Return all tensors of one kind on one stage, in model order."""
    per_rank = shape.num_experts // training.ep
    return tuple(
        Member(_prefix(training, chunk), local_layer, layer, expert % per_rank if block else 0, expert)
        for chunk, layers in enumerate(chunks)
        for local_layer, layer in enumerate(layers)
        if placement in layer_placements(shape, layer)
        for expert in block or (0,)
    )


def _groups(
    shape: ModelShape,
    training: TrainingLayout,
    row: ParameterRow,
    templates: list[ParameterPieces],
    stage: int,
    members: tuple[Member, ...],
    block: range | None,
) -> Iterator[TensorGroup]:
    """Yield a group for each tensor of a table row on one stage."""
    # A block lies within one rank's experts, so its first expert determines the owner.
    ep_rank = block.start * training.ep // shape.num_experts if block else 0
    found: dict[str, dict[tuple[int, int], dict[int, ParameterLocation]]] = {
        tensor.name: {} for tensor in row.tensors
    }
    for rank, template in enumerate(templates):
        holders = training.expert_replicas(rank, ep_rank, stage) if block else training.replicas(rank, stage)
        for piece in template.pieces:
            source = ParameterLocation(
                _end_prefix(training, row.placement) + template.megatron_name, piece.local_start
            )
            # Ranks with a replicated parameter, such as a norm, hold the same interval and become sources of one entry.
            sources = found[piece.hf_name].setdefault((piece.hf_start, piece.length), {})
            sources.update(dict.fromkeys(holders, source))
    for tensor in row.tensors:
        intervals = tuple(
            Interval(start, length, dict(sorted(sources.items())))
            for (start, length), sources in sorted(found[tensor.name].items())
        )
        yield TensorGroup(tensor, dims_of(shape, tensor), stage, members, intervals, block)


def _end_prefix(training: TrainingLayout, placement: Placement) -> str:
    """Return the prefix of parameters outside the layers, which are in the first or last chunk of their stage."""
    if placement in LAYER_PLACEMENTS:
        return ""
    return _prefix(training, 0 if placement is Placement.FIRST_STAGE else training.vpp - 1)


_Copies = dict[str, dict[int, dict[int, ParameterLocation]]]


def _tied_copies(shape: ModelShape, training: TrainingLayout) -> _Copies:
    """Return HF name -> first row -> locations of a tied embedding's copy on the ranks of the last stage."""
    copies: _Copies = {}
    # With a single stage, the output layer uses the embedding itself.
    if training.pp == 1:
        return copies
    for row in (row for row in rows_of(shape) if row.placement is Placement.LAST_STAGE_COPY):
        for tp_rank in range(training.tp):
            template = parameter_template(shape, row, training.tp, tp_rank)
            ranks = training.replicas(tp_rank, training.pp - 1)
            for piece in template.pieces:
                name = _end_prefix(training, row.placement) + template.megatron_name
                by_start = copies.setdefault(piece.hf_name, {})
                by_start[piece.hf_start] = dict.fromkeys(ranks, ParameterLocation(name, piece.local_start))
    return copies


def _with_copies(group: TensorGroup, copies: _Copies) -> TensorGroup:
    by_start = copies[group.tensor.name]
    # The last stage splits the copy as the first stage splits the embedding, so each interval has its counterpart.
    intervals = tuple(Interval(i.start, i.length, i.sources | by_start[i.start]) for i in group.intervals)
    return replace(group, intervals=intervals)
