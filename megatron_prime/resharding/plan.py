"""Who sends which slice of which tensor to whom in a weight sync. Pure, stdlib only: runs on a login node.

    ModelShape, TrainingLayout --> holdings: interval of an HF tensor -> ranks that hold it
    ModelShape, EngineLayout   --> needs:    interval of an HF tensor, for each engine rank
    plan_reshard: intersection, one source for each need --> ReshardPlan --> buckets.py, summary.py

No target gets a byte that it does not need, nor one twice. What a target's own rank holds is a local copy;
the rest comes from the replica (DP, CP, TP-replicated parameter, tied copy) that has the least to send so
far.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_prime.models.hf_mapping import (
    HFShard,
    ModelShape,
    NormStyle,
    hf_shards,
    hf_tensors,
)
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters


class Transfer(NamedTuple):
    """A slice on its way from a parameter of a training rank to a shard of an engine rank.

    Along `dim`, all other dims whole: the `length` rows (or columns) from `hf_start` of the HF tensor are
    those from `source_local_start` of the parameter `source_param`, and go to those from `target_start` of
    the target's shard. A tuple and not a dataclass, since a large plan has half a million.
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
class ReshardPlan:
    """All transfers of a weight sync, in the order of sending that every rank derives alike.

    Transfers of one HF tensor stand together; the tensors of the pipeline stages alternate, so that all
    stages send at the same time.
    """

    shape: ModelShape
    training: TrainingLayout
    engines: EngineLayout
    bytes_per_element: int
    transfers: tuple[Transfer, ...] = field(repr=False)

    def sent_by(self, rank: int) -> tuple[Transfer, ...]:
        """Transfers that leave a training rank, local copies included, in order."""
        return tuple(transfer for transfer in self.transfers if transfer.source_rank == rank)

    def received_by(self, engine: int, tp_rank: int) -> tuple[Transfer, ...]:
        """Transfers that reach an engine rank, local copies included, in order."""
        target = (engine, tp_rank)
        return tuple(t for t in self.transfers if (t.engine, t.engine_tp_rank) == target)


class _Source(NamedTuple):
    param: str
    local_start: int


@dataclass(slots=True)
class _Interval:
    """[start, start + length) of an HF tensor and where each rank that holds it has it."""

    start: int
    length: int
    sources: dict[int, _Source]


class _Need(NamedTuple):
    """A part of an engine rank's shard that lies in one interval."""

    order: int
    shard: HFShard
    interval: _Interval
    hf_start: int
    length: int
    num_bytes: int


def plan_reshard(
    shape: ModelShape,
    training: TrainingLayout,
    engines: EngineLayout,
    *,
    bytes_per_element: int = 2,
    norm_style: NormStyle = "local",
) -> ReshardPlan:
    """Plan the transfers that give every engine rank its shard of every HF tensor.

    `bytes_per_element` is of the dtype that travels; `norm_style` is how the training model names its norms.
    Raises ValueError when the shape cannot be divided as either layout asks.
    """
    holdings, stage_of = _holdings(shape, training, norm_style)
    tensor_bytes = {name: math.prod(dims) * bytes_per_element for name, dims in hf_tensors(shape).items()}
    order_of = _sending_order(tensor_bytes, stage_of)
    sent_bytes = [0] * training.num_ranks
    remote: list[tuple[_Need, int, int]] = []
    transfers: list[tuple[int, Transfer]] = []
    for tp_rank in range(engines.tp):
        needs = list(_needs(shape, engines, tp_rank, holdings, order_of, bytes_per_element))
        for engine in range(engines.num_engines):
            target_rank = engines.ranks[engine][tp_rank]
            for need in needs:
                if target_rank in need.interval.sources:
                    transfers.append((need.order, _transfer(need, target_rank, target_rank, engine, tp_rank)))
                else:
                    remote.append((need, engine, tp_rank))
    # Largest first: the small ones then even out what the large ones left uneven.
    remote.sort(key=lambda item: (-item[0].num_bytes, item[0].order, item[0].hf_start, item[1], item[2]))
    for need, engine, tp_rank in remote:
        source_rank = min(need.interval.sources, key=sent_bytes.__getitem__)
        sent_bytes[source_rank] += need.num_bytes
        target_rank = engines.ranks[engine][tp_rank]
        transfers.append((need.order, _transfer(need, source_rank, target_rank, engine, tp_rank)))
    transfers.sort(key=lambda item: (item[0], item[1].engine, item[1].engine_tp_rank, item[1].hf_start))
    return ReshardPlan(shape, training, engines, bytes_per_element, tuple(t for _, t in transfers))


def _holdings(
    shape: ModelShape, training: TrainingLayout, norm_style: NormStyle
) -> tuple[dict[str, list[_Interval]], dict[str, int]]:
    """The intervals of each HF tensor, sorted, and the first pipeline stage that holds it."""
    intervals: dict[tuple[str, int, int], _Interval] = {}
    stage_of: dict[str, int] = {}
    for pp_rank in range(training.pp):
        for tp_rank in range(training.tp):
            ranks = training.replicas(tp_rank, pp_rank)
            for parameter in local_parameters(shape, training, tp_rank, pp_rank, norm_style):
                for piece in parameter.pieces:
                    key = (piece.hf_name, piece.hf_start, piece.length)
                    interval = intervals.setdefault(key, _Interval(piece.hf_start, piece.length, {}))
                    source = _Source(parameter.megatron_name, piece.local_start)
                    interval.sources.update(dict.fromkeys(ranks, source))
                    stage_of.setdefault(piece.hf_name, pp_rank)
    holdings: dict[str, list[_Interval]] = {name: [] for name in hf_tensors(shape)}
    for (name, _, _), interval in intervals.items():
        interval.sources = dict(sorted(interval.sources.items()))  # on a tie, min() takes the lowest rank
        holdings[name].append(interval)
    for parts in holdings.values():
        parts.sort(key=lambda interval: interval.start)
    return holdings, stage_of


def _sending_order(tensor_bytes: dict[str, int], stage_of: dict[str, int]) -> dict[str, int]:
    """Position of each HF tensor: every stage in model order, the stages advancing evenly by bytes."""
    bytes_before: Counter[int] = Counter()
    keys: dict[str, tuple[int, int, int]] = {}
    for index, (name, num_bytes) in enumerate(tensor_bytes.items()):
        stage = stage_of[name]
        keys[name] = (bytes_before[stage], stage, index)
        bytes_before[stage] += num_bytes
    return {name: position for position, name in enumerate(sorted(keys, key=keys.__getitem__))}


def _needs(
    shape: ModelShape,
    engines: EngineLayout,
    tp_rank: int,
    holdings: dict[str, list[_Interval]],
    order_of: dict[str, int],
    bytes_per_element: int,
) -> Iterator[_Need]:
    """Cut an engine rank's shards at the borders of the training ranks' intervals."""
    dims_of = hf_tensors(shape)
    shards = hf_shards(shape, tp_size=engines.tp, tp_rank=tp_rank, vocab_divisor=engines.vocab_divisor)
    for shard in shards:
        dims = dims_of[shard.hf_name]
        slice_bytes = math.prod(dims) // dims[shard.dim] * bytes_per_element
        intervals = holdings[shard.hf_name]
        position, end = shard.hf_start, shard.hf_start + shard.length
        index = bisect_right(intervals, position, key=lambda interval: interval.start) - 1
        while position < end:
            interval = intervals[index]
            stop = min(end, interval.start + interval.length)
            assert interval.start <= position < stop, f"no rank holds row {position} of {shard.hf_name}"
            length = stop - position
            order = order_of[shard.hf_name]
            yield _Need(order, shard, interval, position, length, length * slice_bytes)
            position, index = stop, index + 1


def _transfer(need: _Need, source_rank: int, target_rank: int, engine: int, tp_rank: int) -> Transfer:
    source = need.interval.sources[source_rank]
    return Transfer(
        source_rank,
        target_rank,
        engine,
        tp_rank,
        need.shard.hf_name,
        need.shard.dim,
        need.hf_start,
        need.length,
        source.param,
        source.local_start + need.hf_start - need.interval.start,
        need.hf_start - need.shard.hf_start,
        need.num_bytes,
    )
