"""The training ranks' end of a weight sync into separate engines: each sends its own slices to those that need them.

`rollout.sglang_receiver` is the other end.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_prime.engines.sglang.loader.receiver import (
    ProcessGroup,
    checksum,
    exchange,
    grouped,
    make_group,
)
from megatron_prime.engines.sglang.weights.manifest import Manifests, Target
from megatron_prime.engines.sglang.weights.quantize import quantize_slice
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.plan import Transfer

SliceKey = tuple[str, int, int, int]
"""Parameter, dim, start and length of a slice here."""


@dataclass(frozen=True)
class Meeting:
    """Where training ranks and receivers meet for one attempt."""

    attempt: str
    """Prefix of its keys in the store."""
    store: tuple[str, int]
    group: str
    """Name of the process group: one of this name is used again."""
    size: int
    """Ranks of the group: the training job's come first."""
    members: tuple[tuple[Target, int], ...]
    """Each receiver and its rank in the group."""
    timeout_s: float

    def connect(self) -> dist.Store:
        """The attempt's part of the store. Raises RuntimeError when its home is gone."""
        host, port = self.store
        timeout = datetime.timedelta(seconds=self.timeout_s)
        return dist.PrefixStore(self.attempt, dist.TCPStore(host, port, is_master=False, timeout=timeout))


@dataclass
class SendReport:
    """How a training rank's part went."""

    faults: dict[int, str] = field(default_factory=dict)
    """By engine."""
    digests: dict[Target, tuple[int, int]] = field(default_factory=dict)
    """Sum of the checksums of all slices to a target, modulo 2**64."""
    num_bytes: int = 0

    def add(self, target: Target, checksums: Sequence[int]) -> None:
        """Count checksums of what a target is sent into its digest."""
        before = self.digests.get(target, (0, 0))
        first, second = ((a + b) % (1 << 64) for a, b in zip(before, checksums, strict=True))
        self.digests[target] = (first, second)


class Sender(Protocol):
    """How a training rank's weights reach engines in other processes."""

    @property
    def backend(self) -> str:
        """What the slices travel by, as the receivers are told."""
        ...

    @property
    def groups(self) -> list[str]:
        """Names of the process groups that can be used again."""
        ...

    def drop_groups(self) -> None:
        """Close what the receivers are reached by."""
        ...

    def send(self, meeting: Meeting) -> SendReport:
        """Send everything to the members of a meeting. Never raises for a receiver's fault: it is in the report."""
        ...


def formed(transfer: Transfer, tensor: torch.Tensor, manifests: Manifests) -> list[torch.Tensor]:
    """A transfer's slice, in the dtype that is served, as it travels: itself, or its FP8 values and their scales."""
    hf_size = manifests.quantized_sizes.get(transfer.hf_name)
    if hf_size is None:
        return [tensor]
    blocks = quantize_slice(
        tensor,
        dim=transfer.dim,
        local_start=0,
        length=transfer.length,
        hf_start=transfer.hf_start,
        hf_size=hf_size,
    )
    return [blocks.weight, blocks.scale_inv]


class ShardSender:
    """Sends a training rank's slices to receivers in other processes.

    Args:
        manifests: of a plan whose engine ranks are outside of the training job.
        parameters: this rank's Megatron parameters by name.
        topology: the layout that the plan was made for.
        dtype: what travels; the cast happens here.
    """

    def __init__(
        self,
        manifests: Manifests,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
    ) -> None:
        self._topology = topology
        self._manifests = manifests
        self._parameters = parameters
        self._dtype = dtype
        self._buckets = manifests.outgoing(topology.rank)
        self._kept: dict[str, ProcessGroup] = {}

    @property
    def backend(self) -> str:
        """What the slices travel by."""
        return "nccl" if self._topology.platform.is_cuda else "gloo"

    @property
    def groups(self) -> list[str]:
        """Names of the process groups that can be used again."""
        return list(self._kept)

    def drop_groups(self) -> None:
        """Close the connections to all receivers, which unblocks those that wait."""
        self._kept.clear()

    @torch.no_grad()
    def send(self, meeting: Meeting) -> SendReport:
        """Send everything that this rank holds for the members of a meeting. Collective with the receivers.

        Never raises for a receiver's or a connection's fault: it is in the report.
        """
        report = SendReport()
        ranks = dict(meeting.members)
        try:
            group = self._group(meeting)
            for bucket in self._buckets:
                self._send_bucket(group, meeting, {t: s for t, s in bucket.items() if t in ranks}, report)
        except (RuntimeError, OSError) as error:
            # The group itself is lost.
            report.faults |= {engine: f"rank {self._topology.rank}: {error}" for (engine, _) in ranks}
        if report.faults:
            self.drop_groups()
        return report

    def _group(self, meeting: Meeting) -> ProcessGroup:
        if meeting.group not in self._kept:
            self._kept.clear()
            store = dist.PrefixStore(meeting.group, meeting.connect())
            self._kept[meeting.group] = make_group(
                self.backend, store, self._topology.rank, meeting.size, meeting.timeout_s
            )
        return self._kept[meeting.group]

    def _send_bucket(
        self,
        group: ProcessGroup,
        meeting: Meeting,
        bucket: Mapping[Target, Sequence[Transfer]],
        report: SendReport,
    ) -> None:
        ranks = dict(meeting.members)
        sliced: dict[SliceKey, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        outgoing: list[tuple[int, torch.Tensor]] = []
        for target, transfers in bucket.items():
            if target[0] in report.faults:
                continue
            for transfer in transfers:
                if slice_key(transfer) not in sliced:
                    tensors = formed(transfer, self._slice(transfer), self._manifests)
                    sliced[slice_key(transfer)] = (tensors, [checksum(tensor) for tensor in tensors])
            slices = [(t.dim, tensor) for t in transfers for tensor in sliced[slice_key(t)][0]]
            checksums = torch.stack([total for t in transfers for total in sliced[slice_key(t)][1]])
            messages = self.messages(slices, checksums)
            outgoing += [(ranks[target], message) for message in messages]
            report.num_bytes += sum(tensor.nbytes for _, tensor in slices)
            report.add(target, checksums.sum(0).tolist())
        engines = {rank: target[0] for target, rank in meeting.members}
        faults = exchange(group, outgoing, [], self.backend, meeting.timeout_s)
        report.faults |= {
            engines[rank]: f"rank {self._topology.rank}: {fault}" for rank, fault in faults.items()
        }

    def messages(
        self, slices: Sequence[tuple[int, torch.Tensor]], checksums: torch.Tensor
    ) -> list[torch.Tensor]:
        """What goes to one receiver for one bucket, in order; views where nothing must be cast or packed."""
        direct, packed = grouped(slices)
        joined = [torch.cat([tensor.reshape(-1) for tensor in part]) for part in packed]
        return [*(tensor.reshape(-1) for tensor in direct), *joined, checksums]

    def _slice(self, transfer: Transfer) -> torch.Tensor:
        parameter = self._parameters[transfer.source_param].detach()
        return parameter.narrow(transfer.dim, transfer.source_local_start, transfer.length).to(self._dtype)


def slice_key(transfer: Transfer) -> SliceKey:
    """Of a transfer's slice: equal for all targets that get it."""
    return (transfer.source_param, transfer.dim, transfer.source_local_start, transfer.length)
