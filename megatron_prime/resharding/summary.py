"""Number of bytes that a `ReshardPlan` moves, and the lower bound. Standard library only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from megatron_prime.resharding.plan import ReshardPlan


@dataclass(frozen=True)
class PlanSummary:
    """Bytes that a plan moves, in total and per rank."""

    delivered_bytes: int
    """Bytes that all targets receive, including local copies."""
    local_bytes: int
    """Bytes copied on a device."""
    network_bytes: int
    """Bytes sent between ranks, within nodes or between them."""
    node_bytes: int
    """Network bytes within nodes, as far as nodes are known; they use NVLink."""
    lower_bound_bytes: int
    """Bytes that targets need and that their own training ranks do not hold."""
    sent_bytes_by_rank: dict[int, int]
    received_bytes_by_rank: dict[int, int]
    nic_sent_bytes_by_rank: dict[int, int]
    """Network bytes to other nodes, which use a NIC."""
    nic_received_bytes_by_rank: dict[int, int]
    """Network bytes from other nodes."""

    @property
    def nic_bytes(self) -> int:
        """Network bytes between nodes."""
        return self.network_bytes - self.node_bytes

    def seconds(self, nic_bytes_per_s: float, nvlink_bytes_per_s: float) -> float:
        """Return a lower bound of the duration: the bytes of the busiest link over its speed.

        Links are assumed to be full duplex and to work in parallel.
        """
        nic = max(
            max(self.nic_sent_bytes_by_rank.values(), default=0),
            max(self.nic_received_bytes_by_rank.values(), default=0),
        )
        nvlink = [
            total[rank] - between_nodes.get(rank, 0)
            for total, between_nodes in (
                (self.sent_bytes_by_rank, self.nic_sent_bytes_by_rank),
                (self.received_bytes_by_rank, self.nic_received_bytes_by_rank),
            )
            for rank in total
        ]
        # NIC and NVLink transfers run at the same time, so the slower of the two decides.
        return max(nic / nic_bytes_per_s, max(nvlink, default=0) / nvlink_bytes_per_s)


def summary(plan: ReshardPlan) -> PlanSummary:
    """Count the bytes of a plan. The lower bound is computed from the layouts, independently of the transfers."""
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
                # Counting per flow instead of per transfer keeps this fast for plans with millions of transfers.
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
    """Return the bytes that engine ranks need, except those that their own training ranks hold."""
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
