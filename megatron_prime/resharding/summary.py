"""How many bytes a `ReshardPlan` moves, and how few could do. Pure, stdlib only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from megatron_prime.resharding.plan import ReshardPlan


@dataclass(frozen=True)
class PlanSummary:
    """Bytes of a plan.

    `lower_bound_bytes`: what targets need and their own ranks do not hold. Network bytes within a node (as far
    as nodes are known) go over NVLink, the others over NICs; the `nic_` fields count the latter.
    """

    delivered_bytes: int
    local_bytes: int
    network_bytes: int
    node_bytes: int
    lower_bound_bytes: int
    sent_bytes_by_rank: dict[int, int]
    received_bytes_by_rank: dict[int, int]
    nic_sent_bytes_by_rank: dict[int, int]
    nic_received_bytes_by_rank: dict[int, int]

    @property
    def nic_bytes(self) -> int:
        """Network bytes between nodes."""
        return self.network_bytes - self.node_bytes

    @property
    def max_sent_bytes(self) -> int:
        """Network bytes of the rank that sends most."""
        return max(self.sent_bytes_by_rank.values(), default=0)

    @property
    def max_received_bytes(self) -> int:
        """Network bytes of the rank that receives most."""
        return max(self.received_bytes_by_rank.values(), default=0)

    def seconds(self, nic_bytes_per_s: float, nvlink_bytes_per_s: float) -> float:
        """The busiest link's bytes over its speed: links are full duplex and work side by side. A floor."""
        nic = max(
            max(self.nic_sent_bytes_by_rank.values(), default=0),
            max(self.nic_received_bytes_by_rank.values(), default=0),
        )
        within = [
            of_rank[rank] - between.get(rank, 0)
            for of_rank, between in (
                (self.sent_bytes_by_rank, self.nic_sent_bytes_by_rank),
                (self.received_bytes_by_rank, self.nic_received_bytes_by_rank),
            )
            for rank in of_rank
        ]
        return max(nic / nic_bytes_per_s, max(within, default=0) / nvlink_bytes_per_s)


def summary(plan: ReshardPlan) -> PlanSummary:
    """Count the bytes of a plan; the lower bound comes from the layouts, not from the transfers."""
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    nic_sent: Counter[int] = Counter()
    nic_received: Counter[int] = Counter()
    local_bytes = 0
    for flow in plan.flows:
        if flow.shares is None:
            local_bytes += flow.num_slices * flow.num_bytes
            continue
        for (_, target), shares in flow.shares_by_target():
            for source, num_slices in shares:
                num_bytes = num_slices * flow.num_bytes
                sent[source] += num_bytes
                received[target] += num_bytes
                if not plan.is_within_node(source, target):
                    nic_sent[source] += num_bytes
                    nic_received[target] += num_bytes
    network_bytes = sent.total()
    return PlanSummary(
        delivered_bytes=local_bytes + network_bytes,
        local_bytes=local_bytes,
        network_bytes=network_bytes,
        node_bytes=network_bytes - nic_sent.total(),
        lower_bound_bytes=_lower_bound_bytes(plan),
        sent_bytes_by_rank=dict(sorted(sent.items())),
        received_bytes_by_rank=dict(sorted(received.items())),
        nic_sent_bytes_by_rank=dict(sorted(nic_sent.items())),
        nic_received_bytes_by_rank=dict(sorted(nic_received.items())),
    )


def _lower_bound_bytes(plan: ReshardPlan) -> int:
    """Bytes that engine ranks need, less those that their own training rank holds."""
    total = 0
    for group in plan.groups:
        num_missing = 0
        for tp_rank in range(plan.engines.tp):
            shard = group.engine_shard(plan.shape, plan.engines, tp_rank)
            if shard is None:
                continue
            end = shard.hf_start + shard.length
            overlaps = [
                (max(0, min(end, part.start + part.length) - max(shard.hf_start, part.start)), part.sources)
                for part in group.intervals
            ]
            for ranks in plan.engines.ranks:
                held = sum(length for length, sources in overlaps if ranks[tp_rank] in sources)
                num_missing += shard.length - held
        total += num_missing * group.slice_elements * len(group.members)
    return total * plan.bytes_per_element
