"""Weights into engines on the training ranks' own nodes and GPUs, where NCCL cannot join two processes on one device.

    training ranks --RankTransport (gloo, NCCL)--> the training rank beside each engine rank
    that rank --staging buffer of two halves (memfd, CUDA IPC)--> memory of the fused parameters

A rank fills one half while the receiver empties the other. They tell each other through the attempt's store:

    staging/RANK       trainer:  the buffer's handle
    filled/RANK/I      trainer:  bucket I lies in half I % 2 ("ok"), or will never come ("gone")
    taken/RANK/I       receiver: the half is free again
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_prime.engines.sglang.loader.receiver import checksum
from megatron_prime.engines.sglang.loader.staging import staging_offsets
from megatron_prime.engines.sglang.weights.manifest import Manifests, Target
from megatron_prime.engines.sglang.weights.send import Meeting, SendReport, SliceKey, formed, slice_key
from megatron_prime.engines.sglang.weights.shared_buffer import SharedBuffer
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.buckets import Bucket
from megatron_prime.resharding.plan import Transfer
from megatron_prime.resharding.transport import RankTransport
from megatron_prime.types import WeightBlock

_HALVES = 2
_PATIENCE = 0.25
"""Of the deadline, for a receiver to empty a half: one that hangs must not make the others' receivers give up."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 2e-4, 2e-2
_Key = tuple[str, int, int]
"""HF name, start and length: slices of one key are equal wherever they come from."""


@dataclass
class _Handover:
    """One target's part of an attempt."""

    target: Target
    rank: int
    """Index of the receiver, as the store's keys have it."""
    num_filled: int = 0
    is_over: bool = False
    """The receiver has been told that nothing more comes."""


class IpcSender:
    """Brings all slices to the training rank beside each engine rank, and hands them over there.

    Args:
        manifests: of a plan whose engine ranks are training ranks; made with `from_host`.
        parameters: this rank's Megatron parameters by name.
        topology: the layout that the plan was made for.
        dtype: what travels; the cast happens at the source.
    """

    backend = "ipc"

    def __init__(
        self,
        manifests: Manifests,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
    ) -> None:
        self._topology = topology
        self._manifests = manifests
        self._tp = manifests.plan.engines.tp
        self._outgoing = manifests.outgoing(topology.rank)
        self._incoming = {
            target: manifests.received(*target) for target in manifests.hosted_by(topology.rank)
        }
        self._transport = RankTransport(
            manifests.plan, parameters, topology, dtype, buckets=self._own_buckets(manifests.num_buckets)
        )
        self._staging: dict[Target, SharedBuffer] = {}

    @property
    def groups(self) -> list[str]:
        """None: there are no connections to be kept."""
        return []

    def drop_groups(self) -> None:
        """Give the staging buffers back."""
        staging, self._staging = self._staging, {}
        for buffer in staging.values():
            buffer.close()

    @torch.no_grad()
    def send(self, meeting: Meeting) -> SendReport:
        """Bring everything to the members of a meeting. Collective over all training ranks.

        Never raises for a receiver's fault: it is in the report.
        """
        report = SendReport()
        members = dict(meeting.members)
        handovers = [_Handover(t, t[0] * self._tp + t[1]) for t in self._incoming if t in members]
        store = meeting.connect()
        for handover in handovers:
            buffer = self._buffer(handover.target)
            store.set(f"staging/{handover.rank}", json.dumps(buffer.handle))
        # All buckets whatever fails: the other ranks count on this one's slices.
        for index, blocks in enumerate(self._transport.deliver()):
            self._add_digests(index, members, report)
            held = {_key_of(block): block.tensor for block in blocks}
            for handover in handovers:
                self._hand_over(
                    store, handover, self._incoming[handover.target][index], held, meeting.timeout_s, report
                )
        return report

    def _own_buckets(self, num_buckets: int) -> list[Bucket]:
        """Of each bucket what this rank sends or gets; pairs of ranks have equal orders."""
        own: list[Bucket] = []
        for index in range(num_buckets):
            sent = [t for transfers in self._outgoing[index].values() for t in transfers]
            got = [
                transfer
                for by_bucket in self._incoming.values()
                for transfer in by_bucket[index]
                if transfer.source_rank != self._topology.rank
            ]
            num_bytes = sum(transfer.num_bytes for transfer in sent + got)
            names = tuple(dict.fromkeys(transfer.hf_name for transfer in sent + got))
            own.append(Bucket(index, names, tuple(sent + got), num_bytes))
        return own

    def _add_digests(self, index: int, members: Mapping[Target, int], report: SendReport) -> None:
        """Checksums of what this rank is the source of: what the receivers end up with must add up to them."""
        sums: dict[SliceKey, list[list[int]]] = {}
        for target, transfers in self._outgoing[index].items():
            if target not in members:
                continue
            for transfer in transfers:
                key = slice_key(transfer)
                if key not in sums:
                    tensors = formed(transfer, self._transport.slice_of(transfer), self._manifests)
                    sums[key] = [checksum(tensor).tolist() for tensor in tensors]
                for total in sums[key]:
                    report.add(target, total)
                report.num_bytes += sum(self._manifests.sizes_of(transfer))

    def _hand_over(
        self,
        store: dist.Store,
        handover: _Handover,
        transfers: Sequence[Transfer],
        held: Mapping[_Key, torch.Tensor],
        timeout_s: float,
        report: SendReport,
    ) -> None:
        """Put a bucket into a half of the target's buffer, once the receiver has emptied it."""
        engine, tp_rank = handover.target
        if handover.is_over or not transfers:
            return
        if engine in report.faults:
            # Another rank of its server failed.
            self._give_up(store, handover)
            return
        number, handover.num_filled = handover.num_filled, handover.num_filled + 1
        try:
            if number >= _HALVES:
                self._await_taken(store, handover.rank, number - _HALVES, timeout_s * _PATIENCE)
            tensors = [x for t in transfers for x in formed(t, held[_key(t)], self._manifests)]
            self._fill(handover.target, number % _HALVES, tensors)
            store.set(f"filled/{handover.rank}/{number}", "ok")
        except (RuntimeError, OSError) as error:
            report.faults[engine] = f"rank {self._topology.rank}: TP rank {tp_rank} took no weights: {error}"
            self._give_up(store, handover)

    def _give_up(self, store: dist.Store, handover: _Handover) -> None:
        handover.is_over = True
        # It may wait for either half.
        for number in range(max(0, handover.num_filled - _HALVES), handover.num_filled + 1):
            store.set(f"filled/{handover.rank}/{number}", "gone")

    def _await_taken(self, store: dist.Store, rank: int, number: int, timeout_s: float) -> None:
        """Wait until a receiver has emptied its half. Raises RuntimeError when it gave up or takes too long."""
        taken, deadline = f"taken/{rank}/{number}", time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while not store.check([taken]):
            if store.check([f"report/{rank}"]):
                raise RuntimeError("the receiver gave up")
            if time.monotonic() > deadline:
                raise RuntimeError(f"bucket {number} was not taken in {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        store.delete_key(taken)

    def _fill(self, target: Target, half: int, tensors: Sequence[torch.Tensor]) -> None:
        memory = self._buffer(target).memory
        offsets = staging_offsets([tensor.nbytes for tensor in tensors])
        start = half * (memory.numel() // _HALVES)
        sums = torch.stack([checksum(tensor) for tensor in tensors])
        for tensor, offset in zip([*tensors, sums], offsets, strict=False):
            place = memory[start + offset : start + offset + tensor.nbytes].view(tensor.dtype)
            place.view(tensor.shape).copy_(tensor)
        self._topology.platform.synchronize()

    def _buffer(self, target: Target) -> SharedBuffer:
        """Large enough for two of the target's buckets."""
        if target not in self._staging:
            half = max(
                staging_offsets([size for t in transfers for size in self._manifests.sizes_of(t)])[-1]
                for transfers in self._incoming[target]
            )
            self._staging[target] = SharedBuffer(_HALVES * half, self._topology.platform.device)
        return self._staging[target]


def _key(transfer: Transfer) -> _Key:
    return (transfer.hf_name, transfer.hf_start, transfer.length)


def _key_of(block: WeightBlock) -> _Key:
    return (block.hf_name, block.start, block.tensor.shape[block.dim])
