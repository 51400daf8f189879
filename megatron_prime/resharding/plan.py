"""The transfers of a weight sync: who sends which slice of which tensor to whom.

Standard library only, so that a plan can be made on a login node.

    ModelShape, layouts --tensor_groups--> groups of tensors with equal layout, and the holders of their intervals
    groups x engines    --_needs---------> the parts of an interval that each engine rank needs
    needs               --_Router--------> flows: the sources of each need, and how many slices each source sends
    flows               --ReshardPlan----> single transfers, on demand --> buckets.py, summary.py

Every target receives exactly the bytes that it needs, each of them once. Slices held by the target's own rank are local
copies. Other slices come from a replica (DP, CP, TP-replicated parameter, tied copy) on the same node, which does not
use the network, or else from the replica with the least bytes to send so far.
"""

from __future__ import annotations

from array import array
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
    """A slice that is sent from a parameter of a training rank to a shard of an engine rank.

    The slice has `length` rows (or columns) along `dim`; all other dims are whole. It starts at `hf_start` in the HF
    tensor, at `source_local_start` in the parameter `source_param`, and at `target_start` in the target's shard. This
    is a tuple instead of a dataclass because a large plan has millions of transfers.
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


@dataclass(frozen=True)
class Flow:
    """The transfers of one slice of every tensor in a group to one TP rank of several engines."""

    group: TensorGroup
    interval: Interval
    hf_start: int
    length: int
    target_start: int
    num_bytes: int
    """Bytes of one slice."""
    engine_tp_rank: int
    targets: tuple[tuple[int, int], ...]
    """(engine, rank) of each target."""
    shares: tuple[tuple[int, int], ...] | None
    """(source rank, number of slices it sends), with the slices counted engine by engine. None for local copies, where
    each target is its own source."""

    @property
    def num_slices(self) -> int:
        """Number of slices to all targets."""
        return len(self.group.members) * len(self.targets)

    def has_source(self, rank: int) -> bool:
        """Return True if a rank sends some of the slices."""
        if self.shares is None:
            return any(rank == target for _, target in self.targets)
        return any(rank == source for source, _ in self.shares)

    def shares_by_target(self) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
        """Yield each target with the sources of its slices and the number of slices that each source sends."""
        num_members = len(self.group.members)
        if self.shares is None:
            yield from ((target, [(target[1], num_members)]) for target in self.targets)
        else:
            yield from zip(self.targets, windows(self.shares, num_members), strict=True)

    def transfers(self, *, source: int | None = None, engine: int | None = None) -> Iterator[Transfer]:
        """Yield one transfer per slice, optionally only those from a source rank or to an engine."""
        members = self.group.members
        for (target_engine, target_rank), shares in self.shares_by_target():
            if engine not in (None, target_engine) or not (
                source is None or any(r == source for r, _ in shares)
            ):
                continue
            # The sources take turns over the members, which are sent in this order, so that all of them are busy.
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
    """All transfers of a weight sync, in an order that every rank derives from the same arguments.

    The transfers of an HF tensor are consecutive, and the tensors of the pipeline stages alternate, so that all stages
    send at the same time. The plan itself is small; single transfers are created on demand.
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
        """All transfers. There are millions in the largest jobs, where a rank should use `sent_by` or `received_by`."""
        return self._in_order(transfer for flow in self.flows for transfer in flow.transfers())

    @cached_property
    def hf_names(self) -> tuple[str, ...]:
        """All HF tensors in the order of sending: in model order per stage, with the stages advancing evenly."""
        bytes_before: dict[int, int] = defaultdict(int)
        # A tensor is sorted by the bytes that its stage sends before it. If all layers have the same size, the n-th
        # layers of all stages are neighbours.
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
        """Return the transfers from a training rank, including local copies, in order."""
        flows = (flow for flow in self.flows if flow.has_source(rank))
        return self._in_order(transfer for flow in flows for transfer in flow.transfers(source=rank))

    def received_by(self, engine: int, tp_rank: int) -> tuple[Transfer, ...]:
        """Return the transfers to an engine rank, including local copies, in order."""
        flows = (flow for flow in self.flows if flow.engine_tp_rank == tp_rank)
        return self._in_order(transfer for flow in flows for transfer in flow.transfers(engine=engine))

    def sources(self, tp_rank: int) -> list[array[int]]:
        """Return, for each engine, the source rank of each transfer to a TP rank, in the order of `received_by`.

        The transfers to a TP rank differ between engines in engine, target and source rank alone. So this and the
        transfers to one engine describe those to all, in a fraction of the time that `received_by` takes for each.
        """
        flows = [flow for flow in self.flows if flow.engine_tp_rank == tp_rank]
        # Flows to different engines carry the same slices, which the group and the first row identify.
        groups = {(id(flow.group), flow.hf_start): flow.group for flow in flows}
        ordered = sorted(
            (self._order_of[member.hf_name(group.tensor.name)], key[1], key, number)
            for key, group in groups.items()
            for number, member in enumerate(group.members)
        )
        positions = {key: [0] * len(group.members) for key, group in groups.items()}
        for position, (_, _, key, number) in enumerate(ordered):
            positions[key][number] = position
        # Arrays, because in the largest jobs there are millions of numbers.
        found = [array("I", [0]) * len(ordered) for _ in self.engines.ranks]
        for flow in flows:
            places = positions[id(flow.group), flow.hf_start]
            for (engine, _), shares in flow.shares_by_target():
                for place, source in zip(places, spread(shares), strict=True):
                    found[engine][place] = source
        return found

    def is_within_node(self, source_rank: int, target_rank: int) -> bool:
        """Return True if two ranks are known to be on the same node."""
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


class _Need(NamedTuple):
    """The part of an interval that an engine TP rank needs of each tensor in a group."""

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

    Args:
        shape: the model.
        training: layout of the training job.
        engines: layout of the engines.
        bytes_per_element: size of an element as it is sent.
        norm_style: naming of norm parameters in the training model.
        expert_style: naming of expert parameters in the training model.
        ranks_per_node: number of consecutive global ranks, including those of engines, on each node. None treats every
            rank as a node of its own.

    Raises:
        ValueError: the shape cannot be divided as a layout requires.
    """
    if ranks_per_node is not None and ranks_per_node < 1:
        raise ValueError(f"ranks_per_node must be positive, got {ranks_per_node}")
    groups = tensor_groups(shape, training, engines, norm_style, expert_style)
    needs = [need for group in groups for need in _needs(shape, engines, group, bytes_per_element)]
    # The largest are routed first, so that the small ones can even out the loads of the ranks.
    needs.sort(key=lambda need: -need.num_bytes)
    router = _Router(training, engines, ranks_per_node)
    flows = tuple(flow for need in needs for flow in router.route(need))
    # Every rank plans on its own and must reach the same result, which is why nothing here depends on the rank.
    return ReshardPlan(shape, training, engines, bytes_per_element, flows, groups, ranks_per_node)


def _needs(
    shape: ModelShape, engines: EngineLayout, group: TensorGroup, bytes_per_element: int
) -> Iterator[_Need]:
    """Split the engine ranks' shards of a group at the boundaries of the training ranks' intervals."""
    starts = [interval.start for interval in group.intervals]
    row_bytes = group.slice_elements * bytes_per_element
    for tp_rank in range(engines.tp):
        shard = group.engine_shard(shape, engines, tp_rank)
        if shard is None:
            continue
        position, end = shard.hf_start, shard.hf_start + shard.length
        # Start with the interval that contains the first needed row, and continue over its successors.
        index = bisect_right(starts, position) - 1
        while position < end:
            interval = group.intervals[index]
            stop = min(end, interval.start + interval.length)
            assert interval.start <= position < stop, f"no rank holds row {position} of {shard.hf_name}"
            length = stop - position
            offset = position - shard.hf_start
            yield _Need(group, interval, position, length, offset, length * row_bytes, tp_rank)
            position, index = stop, index + 1


class _Router:
    """Chooses the sources of one need after the other, and tracks the bytes that each rank has to send."""

    def __init__(self, training: TrainingLayout, engines: EngineLayout, ranks_per_node: int | None) -> None:
        self._engines = engines
        self._ranks_per_node = ranks_per_node
        # Traffic within a node does not load the NICs, so the two loads are balanced independently.
        self._nic_bytes = [0] * training.num_ranks
        self._node_bytes = [0] * training.num_ranks

    def route(self, need: _Need) -> Iterator[Flow]:
        """Yield the flows that serve every engine: local copies, flows within each node, and between nodes."""
        sources = need.interval.sources
        local: list[tuple[int, int]] = []
        by_node: dict[int, list[tuple[int, int]]] = defaultdict(list)
        remote: list[tuple[int, int]] = []
        nodes = self._sources_by_node(need.interval)
        for engine, ranks in enumerate(self._engines.ranks):
            rank = ranks[need.engine_tp_rank]
            if rank in sources:
                # A slice that the target's own rank holds is never sent, whatever the load of the other ranks.
                local.append((engine, rank))
            elif self._ranks_per_node and rank // self._ranks_per_node in nodes:
                by_node[rank // self._ranks_per_node].append((engine, rank))
            else:
                remote.append((engine, rank))
        if local:
            yield self._flow(need, local, None)
        for node, targets in by_node.items():
            yield self._flow(need, targets, self._share_out(need, targets, nodes[node], self._node_bytes))
        if remote:
            yield self._flow(need, remote, self._share_out(need, remote, list(sources), self._nic_bytes))

    def _sources_by_node(self, interval: Interval) -> dict[int, list[int]]:
        by_node: dict[int, list[int]] = defaultdict(list)
        if self._ranks_per_node:
            for rank in interval.sources:
                by_node[rank // self._ranks_per_node].append(rank)
        return by_node

    def _share_out(
        self, need: _Need, targets: list[tuple[int, int]], ranks: list[int], loads: list[int]
    ) -> tuple[tuple[int, int], ...]:
        return share_out(loads, ranks, len(targets) * len(need.group.members), need.num_bytes)

    def _flow(
        self, need: _Need, targets: list[tuple[int, int]], shares: tuple[tuple[int, int], ...] | None
    ) -> Flow:
        return Flow(
            need.group,
            need.interval,
            need.hf_start,
            need.length,
            need.target_start,
            need.num_bytes,
            need.engine_tp_rank,
            tuple(targets),
            shares,
        )
