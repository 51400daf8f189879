"""Weights to servers with devices of their own: each training rank sends its slices through a process group.

The group (gloo on CPUs, NCCL on GPUs) joins all training ranks and the receivers; `loader.receiver` is its other end.
A receiver that has the weights of the last sync is sent what has changed since.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from megatron_prime.engines.sglang.loader.changes import WHOLE, Changes, pack, packed_size
from megatron_prime.engines.sglang.loader.wire import (
    ProcessGroup,
    close_groups,
    exchange,
    group_messages,
    make_group,
)
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan, Target
from megatron_prime.engines.sglang.weights.sender import (
    EncodedSlice,
    Rendezvous,
    SendReport,
    SliceKey,
    slice_key,
)
from megatron_prime.engines.sglang.weights.sent_weights import SentWeights
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.plan import Transfer


class _Encoded(NamedTuple):
    """An `EncodedSlice`, and the changes of each tensor since the last sync; None if they are not known or too many."""

    tensors: list[torch.Tensor]
    checksums: list[torch.Tensor]
    changes: list[Changes | None]


class GroupSender:
    """Sends a training rank's slices straight to the receivers that need them; see `Sender`.

    Args:
        plan: of a transfer to engine ranks outside of the training job.
        parameters: this rank's Megatron parameters by name.
        topology: the layout that the plan was made for.
        dtype: the type to send; slices are cast here.
        sends_changes: keep a copy of what is sent, and send later changes to receivers that have it.
    """

    def __init__(
        self,
        plan: BucketedPlan,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
        *,
        sends_changes: bool = False,
    ) -> None:
        self._topology = topology
        self._plan = plan
        self._parameters = parameters
        self._dtype = dtype
        self._buckets = plan.outgoing(topology.rank)
        self._groups: dict[str, ProcessGroup] = {}
        self._sent = SentWeights(is_pinned=topology.platform.is_cuda) if sends_changes else None

    @property
    def sends_changes(self) -> bool:
        """See `Sender.sends_changes`."""
        return self._sent is not None

    @property
    def backend(self) -> str:
        """See `Sender.backend`."""
        # NCCL moves GPU memory directly and needs a GPU of its own per rank; gloo copies through host memory.
        return "nccl" if self._topology.platform.is_cuda else "gloo"

    @property
    def groups(self) -> list[str]:
        """See `Sender.groups`."""
        return list(self._groups)

    def drop_groups(self) -> None:
        """See `Sender.drop_groups`."""
        close_groups(self._groups, self.backend)

    @torch.no_grad()
    def send(self, rendezvous: Rendezvous) -> SendReport:
        """See `Sender.send`. Collective with the receivers too."""
        report = SendReport()
        ranks = dict(rendezvous.members)
        try:
            group = self._group(rendezvous)
            for bucket in self._buckets:
                targets = {target: transfers for target, transfers in bucket.items() if target in ranks}
                self._send_bucket(group, rendezvous, targets, report)
        except (RuntimeError, OSError) as error:
            # The group as a whole has failed, and no engine can be reached through it any more.
            report.faults |= {engine: f"rank {self._topology.rank}: {error}" for (engine, _) in ranks}
        if report.faults:
            self.drop_groups()
        return report

    def _group(self, rendezvous: Rendezvous) -> ProcessGroup:
        if rendezvous.group not in self._groups:
            self.drop_groups()
            self._groups[rendezvous.group] = make_group(
                self.backend,
                rendezvous.connect(),
                rendezvous.group,
                self._topology.rank,
                rendezvous.size,
                rendezvous.timeout_s,
            )
        return self._groups[rendezvous.group]

    def _send_bucket(
        self,
        group: ProcessGroup,
        rendezvous: Rendezvous,
        bucket: Mapping[Target, Sequence[Transfer]],
        report: SendReport,
    ) -> None:
        ranks = dict(rendezvous.members)
        # Several targets may get the same slice, such as the servers of a fleet: it is encoded once.
        encoded: dict[SliceKey, _Encoded] = {}
        headers: list[tuple[int, torch.Tensor]] = []
        outgoing: list[tuple[int, torch.Tensor]] = []
        for target, transfers in bucket.items():
            if target[0] in report.faults:
                continue
            for transfer in transfers:
                if slice_key(transfer) not in encoded:
                    encoded[slice_key(transfer)] = self._encode(transfer, rendezvous, report)
            parts = [encoded[slice_key(transfer)] for transfer in transfers]
            checksums = torch.stack([checksum for part in parts for checksum in part.checksums])
            slices = [
                (t.dim, tensor) for t, part in zip(transfers, parts, strict=True) for tensor in part.tensors
            ]
            if target in rendezvous.patched:
                changes = [change for part in parts for change in part.changes]
                header, messages = self.changed([tensor for _, tensor in slices], changes, checksums)
                headers.append((ranks[target], header))
                report.num_bytes += header.nbytes + sum(message.nbytes for message in messages)
            else:
                messages = self.messages(slices, checksums)
                report.num_bytes += sum(tensor.nbytes for _, tensor in slices)
            outgoing += [(ranks[target], message) for message in messages]
            report.add(target, checksums.sum(0).tolist())
        # Receivers learn the sizes of their messages from the headers, in an exchange of its own.
        errors = exchange(group, headers, [], self.backend, rendezvous.timeout_s)
        outgoing = [(rank, message) for rank, message in outgoing if rank not in errors]
        errors |= exchange(group, outgoing, [], self.backend, rendezvous.timeout_s)
        engines = {rank: target[0] for target, rank in rendezvous.members}
        report.faults |= {
            engines[rank]: f"rank {self._topology.rank}: {error}" for rank, error in errors.items()
        }

    def _encode(self, transfer: Transfer, rendezvous: Rendezvous, report: SendReport) -> "_Encoded":
        """Encode a slice, and find what has changed in it if that is to be sent."""
        tensors, checksums = EncodedSlice.encode(transfer, self._slice(transfer), self._plan)
        changes: list[Changes | None] = [None] * len(tensors)
        if self._sent is not None:
            # The HF name, too: a parameter that is sent by two names is compared twice.
            key = (transfer.hf_name, slice_key(transfer))
            base = rendezvous.base if rendezvous.patched else None
            changes = self._sent.advance(key, tensors, base, rendezvous.label)
            if base is not None:
                report.num_compared += sum(tensor.numel() for tensor in tensors)
                report.num_changed += sum(
                    tensor.numel() if change is None else len(change.values)
                    for tensor, change in zip(tensors, changes, strict=True)
                )
        return _Encoded(tensors, checksums, changes)

    def changed(
        self, tensors: Sequence[torch.Tensor], changes: Sequence[Changes | None], checksums: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the header for one receiver and one bucket, and the message, if there are any changes.

        Args:
            tensors: the whole slices.
            changes: the changes of each; None to send it whole.
            checksums: int64 [number of slices, 2] of the whole slices.
        """
        nums = torch.tensor([WHOLE if change is None else len(change.values) for change in changes])
        header = torch.cat([nums.to(checksums.device)[:, None], checksums], dim=1)
        parts = [
            part
            for tensor, change in zip(tensors, changes, strict=True)
            for part in ([tensor] if change is None else change.parts)
        ]
        if not parts:
            return header, []
        size = packed_size([part.nbytes for part in parts])
        message = torch.empty(size, dtype=torch.uint8, device=checksums.device)
        pack(parts, message)
        return header, [message]

    def messages(
        self, slices: Sequence[tuple[int, torch.Tensor]], checksums: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the messages to one receiver for one bucket, in order; large slices are views, not copies."""
        direct, packed = group_messages(slices)
        joined = [torch.cat([tensor.reshape(-1) for tensor in part]) for part in packed]
        return [*(tensor.reshape(-1) for tensor in direct), *joined, checksums]

    def _slice(self, transfer: Transfer) -> torch.Tensor:
        parameter = self._parameters[transfer.source_param].detach()
        return parameter.narrow(transfer.dim, transfer.source_local_start, transfer.length).to(self._dtype)
