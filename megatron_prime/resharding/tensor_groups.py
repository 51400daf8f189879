"""HF tensors that lie alike on every rank, so that a plan is made once for all of them. Pure, stdlib only.

A large mixture of experts has 70 thousand tensors and a few hundred groups: one for each row of the table, pipeline
stage and block of experts that neither side divides further.
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


class Source(NamedTuple):
    """Where a rank has an interval: the parameter (a template) and the first row or column in it."""

    param: str
    local_start: int


class Member(NamedTuple):
    """One tensor of a group: which layer and expert, as HF counts and as its training rank does."""

    prefix: str = ""
    local_layer: int = 0
    layer: int = 0
    local_expert: int = 0
    expert: int = 0

    def hf_name(self, template: str) -> str:
        """The HF tensor's name."""
        return template.format(layer=self.layer, expert=self.expert)

    def param(self, template: str) -> str:
        """The Megatron parameter's name on its rank."""
        return self.prefix + template.format(layer=self.local_layer, expert=self.local_expert)


@dataclass(frozen=True, slots=True)
class Interval:
    """[start, start + length) of an HF tensor, and where each rank that holds it has it, lowest rank first."""

    start: int
    length: int
    sources: dict[int, Source]


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are cut alike, with the same holders. `expert_block`: the experts of the members."""

    tensor: HFTensor
    dims: tuple[int, ...]
    stage: int
    members: tuple[Member, ...]
    intervals: tuple[Interval, ...]
    expert_block: range | None = None

    @property
    def dim(self) -> int:
        """Along which the tensors are cut."""
        return self.tensor.parallel_dim or 0

    @cached_property
    def slice_elements(self) -> int:
        """Elements of one row (or column)."""
        return math.prod(self.dims) // self.dims[self.dim]

    def engine_shard(self, shape: ModelShape, engines: EngineLayout, tp_rank: int) -> HFShard | None:
        """What an engine's rank holds of each member; None of experts that are on other ranks."""
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
    """All HF tensors, each in one group. Raises ValueError when the shape cannot be divided as asked."""
    check_tensor_parallel(shape, training.tp)
    check_expert_parallel(shape, training.ep, training.etp)
    check_expert_parallel(shape, engines.ep, 1)
    stages = training.stage_layers(shape.num_layers)
    rows = rows_of(shape)
    groups: list[TensorGroup] = []
    for row in rows:
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
        elif row.placement is not Placement.LAST_STAGE_COPY:
            stage = 0 if row.placement is Placement.FIRST_STAGE else training.pp - 1
            groups += _groups(shape, training, row, templates, stage, (Member(),), None)
    copies = _tied_copies(shape, training)
    return tuple(_with_copies(group, copies) if group.tensor.name in copies else group for group in groups)


def _prefix(training: TrainingLayout, chunk: int) -> str:
    return f"{chunk}." if training.vpp > 1 else ""


def _expert_blocks(shape: ModelShape, training: TrainingLayout, engines: EngineLayout) -> Iterator[range]:
    """The experts, cut wherever one side divides them."""
    steps = {shape.num_experts // training.ep, shape.num_experts // engines.ep}
    borders = sorted({border for step in steps for border in range(0, shape.num_experts + 1, step)})
    yield from map(range, borders, borders[1:])


def _members(
    shape: ModelShape,
    training: TrainingLayout,
    place: Placement,
    chunks: tuple[range, ...],
    block: range | None,
) -> tuple[Member, ...]:
    """Every tensor of a kind on one stage, in model order."""
    per_rank = shape.num_experts // training.ep
    return tuple(
        Member(_prefix(training, chunk), local_layer, layer, expert % per_rank if block else 0, expert)
        for chunk, layers in enumerate(chunks)
        for local_layer, layer in enumerate(layers)
        if place in layer_placements(shape, layer)
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
    """A group for each tensor of a row on one stage."""
    ep_rank = block.start * training.ep // shape.num_experts if block else 0
    found: dict[str, dict[tuple[int, int], dict[int, Source]]] = {tensor.name: {} for tensor in row.tensors}
    for rank, template in enumerate(templates):
        holders = training.expert_replicas(rank, ep_rank, stage) if block else training.replicas(rank, stage)
        for piece in template.pieces:
            source = Source(_end_prefix(training, row.placement) + template.megatron_name, piece.local_start)
            sources = found[piece.hf_name].setdefault((piece.hf_start, piece.length), {})
            sources.update(dict.fromkeys(holders, source))
    for tensor in row.tensors:
        intervals = tuple(
            Interval(start, length, dict(sorted(sources.items())))
            for (start, length), sources in sorted(found[tensor.name].items())
        )
        yield TensorGroup(tensor, dims_of(shape, tensor), stage, members, intervals, block)


def _end_prefix(training: TrainingLayout, place: Placement) -> str:
    """Prefix of the parameters outside of the layers, which their stage's first or last chunk holds."""
    if place in LAYER_PLACEMENTS:
        return ""
    return _prefix(training, 0 if place is Placement.FIRST_STAGE else training.vpp - 1)


_Copies = dict[str, dict[int, dict[int, Source]]]


def _tied_copies(shape: ModelShape, training: TrainingLayout) -> _Copies:
    """HF name -> first row -> ranks of the last stage that hold a copy of a tied embedding."""
    copies: _Copies = {}
    if training.pp == 1:
        return copies
    for row in (row for row in rows_of(shape) if row.placement is Placement.LAST_STAGE_COPY):
        for tp_rank in range(training.tp):
            template = parameter_template(shape, row, training.tp, tp_rank)
            ranks = training.replicas(tp_rank, training.pp - 1)
            for piece in template.pieces:
                name = _end_prefix(training, row.placement) + template.megatron_name
                of_tensor = copies.setdefault(piece.hf_name, {})
                of_tensor[piece.hf_start] = dict.fromkeys(ranks, Source(name, piece.local_start))
    return copies


def _with_copies(group: TensorGroup, copies: _Copies) -> TensorGroup:
    of_tensor = copies[group.tensor.name]
    intervals = tuple(Interval(i.start, i.length, i.sources | of_tensor[i.start]) for i in group.intervals)
    return replace(group, intervals=intervals)
