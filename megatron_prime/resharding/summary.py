"""How many bytes a `ReshardPlan` moves, and how few could do. Pure, stdlib only."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from megatron_prime.models.hf_mapping import ModelShape, hf_shards, hf_tensors
from megatron_prime.resharding.layouts import TrainingLayout, local_parameters
from megatron_prime.resharding.plan import ReshardPlan


@dataclass(frozen=True)
class PlanSummary:
    """Bytes of a plan. `lower_bound_bytes`: what targets need and their own ranks do not hold."""

    delivered_bytes: int
    local_bytes: int
    network_bytes: int
    lower_bound_bytes: int
    sent_bytes_by_rank: dict[int, int]
    received_bytes_by_rank: dict[int, int]

    @property
    def max_sent_bytes(self) -> int:
        """Network bytes of the rank that sends most."""
        return max(self.sent_bytes_by_rank.values(), default=0)

    @property
    def max_received_bytes(self) -> int:
        """Network bytes of the rank that receives most."""
        return max(self.received_bytes_by_rank.values(), default=0)


def summary(plan: ReshardPlan) -> PlanSummary:
    """Count the bytes of a plan; the lower bound comes from the layouts, not from the transfers."""
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    local_bytes = 0
    for transfer in plan.transfers:
        if transfer.is_local:
            local_bytes += transfer.num_bytes
        else:
            sent[transfer.source_rank] += transfer.num_bytes
            received[transfer.target_rank] += transfer.num_bytes
    network_bytes = sent.total()
    return PlanSummary(
        delivered_bytes=local_bytes + network_bytes,
        local_bytes=local_bytes,
        network_bytes=network_bytes,
        lower_bound_bytes=_lower_bound_bytes(plan),
        sent_bytes_by_rank=dict(sorted(sent.items())),
        received_bytes_by_rank=dict(sorted(received.items())),
    )


def _lower_bound_bytes(plan: ReshardPlan) -> int:
    """Bytes that engine ranks need, less those that their own training rank holds."""
    shape, training, engines = plan.shape, plan.training, plan.engines
    dims_of = hf_tensors(shape)
    held_by: dict[int, dict[str, list[tuple[int, int]]]] = {}
    total = 0
    for tp_rank in range(engines.tp):
        shards = hf_shards(shape, tp_size=engines.tp, tp_rank=tp_rank, vocab_divisor=engines.vocab_divisor)
        for ranks in engines.ranks:
            rank = ranks[tp_rank]
            if rank not in held_by:
                held_by[rank] = _held(shape, training, rank)
            for shard in shards:
                dims = dims_of[shard.hf_name]
                end = shard.hf_start + shard.length
                overlaps = (
                    max(0, min(end, stop) - max(shard.hf_start, start))
                    for start, stop in held_by[rank].get(shard.hf_name, ())
                )
                total += (shard.length - sum(overlaps)) * (math.prod(dims) // dims[shard.dim])
    return total * plan.bytes_per_element


def _held(shape: ModelShape, training: TrainingLayout, rank: int) -> dict[str, list[tuple[int, int]]]:
    held: dict[str, list[tuple[int, int]]] = {}
    if rank < training.num_ranks:
        tp_rank, pp_rank = training.coordinates(rank)
        for parameter in local_parameters(shape, training, tp_rank, pp_rank):
            for piece in parameter.pieces:
                held.setdefault(piece.hf_name, []).append((piece.hf_start, piece.hf_start + piece.length))
    return held
