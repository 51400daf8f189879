"""Who sends which slice of which tensor to whom in a weight sync. Pure, stdlib only: runs on a login node.

    ModelShape, layouts --tensor_groups--> tensors that are cut alike, and who holds which interval of them
    groups x engines    --_wants---------> the parts of an interval that each engine rank needs
    wants               --_route---------> flows: which sources send them, and how many each
    flows               --ReshardPlan----> single transfers, when asked for --> buckets.py, summary.py

No target gets a byte that it does not need, nor one twice. What a target's own rank holds is a local copy; next
comes a replica (DP, CP, TP-replicated parameter, tied copy) on the same node, which costs no NIC anything; else the
replica that has the least to send so far.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from megatron_prime.hf.mapping import ExpertStyle, ModelShape, NormStyle
from megatron_prime.resharding.balance import share_out, spread, windows
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.tensor_groups import Interval, TensorGroup, tensor_groups


class Transfer(NamedTuple):
    """A slice on its way from a parameter of a training rank to a shard of an engine rank.

    Along `dim`, all other dims whole: the `length` rows (or columns) from `hf_start` of the HF tensor are
    those from `source_local_start` of the parameter `source_param`, and go to those from `target_start` of
    the target's shard. A tuple and not a dataclass, since a large plan has millions.
    """

    source_rank: int
    target_rank: int
    engine: int
    engine_tp_rank: int
    hf_name: str
    dim: int
    hf_start: int
    length: int
    source_param: str
    source_local_start: int
    target_start: int
    num_bytes: int

    @property
    def is_local(self) -> bool:
        """Whether source and target are one rank: a copy on the device, nothing for the network."""
        return self.source_rank == self.target_rank


@dataclass(frozen=True)
class Flow:
    """The same slice of every tensor of a group, on its way to one engine TP rank of some engines.

    `num_bytes` is of one slice. `shares`: how many slices each source sends; None of local copies, where each
    target is its own source. Slices are counted engine by engine.
    """

    group: TensorGroup
    interval: Interval
    hf_start: int
    length: int
    target_start: int
    num_bytes: int
    engine_tp_rank: int
    targets: tuple[tuple[int, int], ...]
    """(engine, rank) of each target."""
    shares: tuple[tuple[int, int], ...] | None

    @property
    def num_slices(self) -> int:
        """Slices to all targets."""
        return len(self.group.members) * len(self.targets)

    def has_source(self, rank: int) -> bool:
        """Whether a rank sends some of the slices."""
        if self.shares is None:
            return any(rank == target for _, target in self.targets)
        return any(rank == source for source, _ in self.shares)

    def shares_by_target(self) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
        """Each target, with the sources of its slices and how many each sends."""
        num_members = len(self.group.members)
        if self.shares is None:
            yield from ((target, [(target[1], num_members)]) for target in self.targets)
        else:
            yield from zip(self.targets, windows(self.shares, num_members), strict=True)

    def transfers(self, *, source: int | None = None, engine: int | None = None) -> Iterator[Transfer]:
        """Each slice by itself; only those from a source rank, or to an engine, when that is given."""
        members = self.group.members
        for (target_engine, target_rank), shares in self.shares_by_target():
            if engine not in (None, target_engine) or not (
                source is None or any(r == source for r, _ in shares)
            ):
                continue
            source_ranks = spread(shares)
            for member, source_rank in zip(members, source_ranks, strict=True):
                if source not in (None, source_rank):
                    continue
                held = self.interval.sources[source_rank]
                yield Transfer(
                    source_rank,
                    target_rank,
                    target_engine,
                    self.engine_tp_rank,
                    member.hf_name(self.group.tensor.name),
                    self.group.dim,
                    self.hf_start,
                    self.length,
                    member.param(held.param),
                    held.local_start + self.hf_start - self.interval.start,
                    self.target_start,
                    self.num_bytes,
                )


@dataclass(frozen=True)
class ReshardPlan:
    """All transfers of a weight sync, in an order of sending that every rank derives alike.

    Transfers of one HF tensor stand together; the tensors of the pipeline stages alternate, so that all
    stages send at the same time. The plan itself is small; single transfers are made when asked for.
    """

    shape: ModelShape
    training: TrainingLayout
    engines: EngineLayout
    bytes_per_element: int
    flows: tuple[Flow, ...] = field(repr=False)
    groups: tuple[TensorGroup, ...] = field(repr=False)
    ranks_per_node: int | None = None

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """Every transfer: millions for the largest jobs, where a rank asks for its own alone."""
        return self._in_order(transfer for flow in self.flows for transfer in flow.transfers())

    @cached_property
    def hf_names(self) -> tuple[str, ...]:
        """Every HF tensor in the order of sending: each stage in model order, the stages advancing evenly."""
        bytes_before: dict[int, int] = defaultdict(int)
        keys: dict[str, tuple[int, int, int]] = {}
        by_layer = sorted(
            (
                ((member.layer, index) if "{layer}" in group.tensor.name else (-1, index), member, group)
                for index, group in enumerate(self.groups)
                for member in group.members
            ),
            key=lambda item: (item[0], item[1]),
        )
        for position, (_, member, group) in enumerate(by_layer):
            keys[member.hf_name(group.tensor.name)] = (bytes_before[group.stage], group.stage, position)
            bytes_before[group.stage] += group.slice_elements * group.dims[group.dim]
        return tuple(sorted(keys, key=keys.__getitem__))

    def sent_by(self, rank: int) -> tuple[Transfer, ...]:
        """Transfers that leave a training rank, local copies included, in order."""
        flows = (flow for flow in self.flows if flow.has_source(rank))
        return self._in_order(transfer for flow in flows for transfer in flow.transfers(source=rank))

    def received_by(self, engine: int, tp_rank: int) -> tuple[Transfer, ...]:
        """Transfers that reach an engine rank, local copies included, in order."""
        flows = (flow for flow in self.flows if flow.engine_tp_rank == tp_rank)
        return self._in_order(transfer for flow in flows for transfer in flow.transfers(engine=engine))

    def is_within_node(self, source_rank: int, target_rank: int) -> bool:
        """Whether two ranks are known to be on one node."""
        size = self.ranks_per_node
        return size is not None and source_rank // size == target_rank // size

    @cached_property
    def _order_of(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.hf_names)}

    def _in_order(self, transfers: Iterator[Transfer]) -> tuple[Transfer, ...]:
        order_of = self._order_of
        return tuple(
            sorted(transfers, key=lambda t: (order_of[t.hf_name], t.engine, t.engine_tp_rank, t.hf_start))
        )


class _Want(NamedTuple):
    """A part of one interval that an engine TP rank holds of each tensor of a group."""

    group: TensorGroup
    interval: Interval
    hf_start: int
    length: int
    target_start: int
    num_bytes: int
    engine_tp_rank: int


def plan_reshard(
    shape: ModelShape,
    training: TrainingLayout,
    engines: EngineLayout,
    *,
    bytes_per_element: int = 2,
    norm_style: NormStyle = "local",
    expert_style: ExpertStyle = "sequential",
    ranks_per_node: int | None = None,
) -> ReshardPlan:
    """Plan the transfers that give every engine rank its shard of every HF tensor.

    `bytes_per_element` is of the dtype that travels; `norm_style` and `expert_style` are how the training model
    names its parameters. `ranks_per_node`: global ranks (those of engines too) fill the nodes in order; without
    it no two ranks are taken to share a node. Raises ValueError when the shape cannot be divided as either
    layout asks.
    """
    if ranks_per_node is not None and ranks_per_node < 1:
        raise ValueError(f"ranks_per_node must be positive, got {ranks_per_node}")
    groups = tensor_groups(shape, training, engines, norm_style, expert_style)
    wants = [want for group in groups for want in _wants(shape, engines, group, bytes_per_element)]
    # Largest first: the small ones then even out what the large ones left uneven.
    wants.sort(key=lambda want: -want.num_bytes)
    router = _Router(training, engines, ranks_per_node)
    flows = tuple(flow for want in wants for flow in router.route(want))
    return ReshardPlan(shape, training, engines, bytes_per_element, flows, groups, ranks_per_node)


def _wants(
    shape: ModelShape, engines: EngineLayout, group: TensorGroup, bytes_per_element: int
) -> Iterator[_Want]:
    """Cut the engine ranks' shards of a group at the borders of the training ranks' intervals."""
    starts = [interval.start for interval in group.intervals]
    row_bytes = group.slice_elements * bytes_per_element
    for tp_rank in range(engines.tp):
        shard = group.engine_shard(shape, engines, tp_rank)
        if shard is None:
            continue
        position, end = shard.hf_start, shard.hf_start + shard.length
        index = bisect_right(starts, position) - 1
        while position < end:
            interval = group.intervals[index]
            stop = min(end, interval.start + interval.length)
            assert interval.start <= position < stop, f"no rank holds row {position} of {shard.hf_name}"
            length = stop - position
            offset = position - shard.hf_start
            yield _Want(group, interval, position, length, offset, length * row_bytes, tp_rank)
            position, index = stop, index + 1


class _Router:
    """Chooses sources, one want after the other, and keeps count of what each rank has to send."""

    def __init__(self, training: TrainingLayout, engines: EngineLayout, ranks_per_node: int | None) -> None:
        self._engines = engines
        self._ranks_per_node = ranks_per_node
        self._nic_bytes = [0] * training.num_ranks
        self._node_bytes = [0] * training.num_ranks

    def route(self, want: _Want) -> Iterator[Flow]:
        """The flows that bring a want to every engine: local copies, within each node, and between nodes."""
        sources = want.interval.sources
        local: list[tuple[int, int]] = []
        by_node: dict[int, list[tuple[int, int]]] = defaultdict(list)
        remote: list[tuple[int, int]] = []
        nodes = self._sources_by_node(want.interval)
        for engine, ranks in enumerate(self._engines.ranks):
            rank = ranks[want.engine_tp_rank]
            if rank in sources:
                local.append((engine, rank))
            elif self._ranks_per_node and rank // self._ranks_per_node in nodes:
                by_node[rank // self._ranks_per_node].append((engine, rank))
            else:
                remote.append((engine, rank))
        if local:
            yield self._flow(want, local, None)
        for node, targets in by_node.items():
            yield self._flow(want, targets, self._share_out(want, targets, nodes[node], self._node_bytes))
        if remote:
            yield self._flow(want, remote, self._share_out(want, remote, list(sources), self._nic_bytes))

    def _sources_by_node(self, interval: Interval) -> dict[int, list[int]]:
        by_node: dict[int, list[int]] = defaultdict(list)
        if self._ranks_per_node:
            for rank in interval.sources:
                by_node[rank // self._ranks_per_node].append(rank)
        return by_node

    def _share_out(
        self, want: _Want, targets: list[tuple[int, int]], ranks: list[int], loads: list[int]
    ) -> tuple[tuple[int, int], ...]:
        return share_out(loads, ranks, len(targets) * len(want.group.members), want.num_bytes)

    def _flow(
        self, want: _Want, targets: list[tuple[int, int]], shares: tuple[tuple[int, int], ...] | None
    ) -> Flow:
        return Flow(
            want.group,
            want.interval,
            want.hf_start,
            want.length,
            want.target_start,
            want.num_bytes,
            want.engine_tp_rank,
            tuple(targets),
            shares,
        )
