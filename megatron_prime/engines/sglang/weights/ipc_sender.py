"""Weights to servers on the training ranks' own devices, where NCCL can't join two processes on one GPU.

    training ranks --RankTransport (gloo, NCCL)--> the training rank on each engine rank's device
    that rank --staging buffer of two halves (memfd, CUDA IPC)--> memory of the fused parameters

The sender fills one half while the receiver empties the other. They synchronize through the attempt's store:

    staging/RANK       trainer:  the handle of the buffer
    filled/RANK/I      trainer:  bucket I is in half I % 2 ("ok"), or will never come ("gone")
    taken/RANK/I       receiver: the half is free again
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_prime.engines.sglang.loader.signing import SignedStore
from megatron_prime.engines.sglang.loader.staging import staging_offsets
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan, Target
from megatron_prime.engines.sglang.weights.sender import (
    EncodedSlice,
    Rendezvous,
    SendReport,
    SliceKey,
    slice_key,
)
from megatron_prime.engines.sglang.weights.shared_buffer import SharedBuffer
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.buckets import Bucket
from megatron_prime.resharding.plan import Transfer
from megatron_prime.resharding.transport import RankTransport
from megatron_prime.types import WeightBlock

_HALVES = 2
_RECEIVER_SHARE = 0.25
"""Share of the deadline for a receiver to empty a half. One that hangs must not use up the other receivers' time."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 2e-4, 2e-2
_BlockKey = tuple[str, int, int]
"""HF name, start and length. Slices with equal keys are equal, whichever rank they come from."""


@dataclass
class _Delivery:
    """The state of one target's part of an attempt."""

    target: Target
    rank: int
    """Index of the receiver in the store's keys."""
    num_filled: int = 0
    is_over: bool = False
    """True once the receiver knows that nothing more comes."""


class IpcSender:
    """Brings all slices to the training rank on each engine rank's device, and hands them over there; see `Sender`.

    Args:
        plan: of a transfer to engine ranks that are training ranks, made with `from_host`.
        parameters: this rank's Megatron parameters by name.
        topology: the layout that the plan was made for.
        dtype: the type to send; slices are cast on the rank that they come from.
    """

    backend = "ipc"
    sends_changes = False
    """On a GPU the receivers give up the memory of their weights between two syncs, and have nothing to change. Where
    they keep it, to copy a slice in memory takes less time than to compare it."""

    def __init__(
        self,
        plan: BucketedPlan,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
    ) -> None:
        self._topology = topology
        self._plan = plan
        self._tp = plan.reshard.engines.tp
        self._outgoing = plan.outgoing(topology.rank)
        self._incoming = {target: plan.received(*target) for target in plan.hosted_by(topology.rank)}
        self._transport = RankTransport(
            plan.reshard, parameters, topology, dtype, buckets=self._own_buckets(plan.num_buckets)
        )
        # Kept from sync to sync: receivers keep their mappings, and CUDA memory must not be freed while one is open.
        self._staging: dict[Target, SharedBuffer] = {}

    @property
    def groups(self) -> list[str]:
        """Return no names: there are no process groups with receivers."""
        return []

    def drop_groups(self) -> None:
        """Free the staging buffers."""
        staging, self._staging = self._staging, {}
        for buffer in staging.values():
            buffer.close()

    @torch.no_grad()
    def send(self, rendezvous: Rendezvous) -> SendReport:
        """See `Sender.send`."""
        report = SendReport()
        members = dict(rendezvous.members)
        deliveries = [_Delivery(t, t[0] * self._tp + t[1]) for t in self._incoming if t in members]
        store = rendezvous.connect()
        for delivery in deliveries:
            buffer = self._buffer(delivery.target)
            store.set(f"staging/{delivery.rank}", buffer.handle)
        # Go through all buckets whatever fails: the other training ranks wait for this one's slices.
        for index, blocks in enumerate(self._transport.deliver()):
            own = self._encode_own(index, members, report)
            held = {(block.hf_name, block.start, _length(block)): block.tensor for block in blocks}
            for delivery in deliveries:
                transfers = self._incoming[delivery.target][index]
                self._hand_over(store, delivery, transfers, own, held, rendezvous.timeout_s, report)
        return report

    def _own_buckets(self, num_buckets: int) -> list[Bucket]:
        """Cut this rank's transfers into buckets. Both ranks of a pair must list their common ones in one order."""
        own: list[Bucket] = []
        for index in range(num_buckets):
            sent = [t for transfers in self._outgoing[index].values() for t in transfers]
            received = [
                transfer
                for by_bucket in self._incoming.values()
                for transfer in by_bucket[index]
                if transfer.source_rank != self._topology.rank
            ]
            num_bytes = sum(transfer.num_bytes for transfer in sent + received)
            names = tuple(dict.fromkeys(transfer.hf_name for transfer in sent + received))
            own.append(Bucket(index, names, tuple(sent + received), num_bytes))
        return own

    def _encode_own(
        self, index: int, members: Mapping[Target, int], report: SendReport
    ) -> dict[SliceKey, EncodedSlice]:
        """Encode the slices of a bucket that this rank is the source of, and add their checksums to the digests.

        The digests come from the source alone. What the receivers report in the end must add up to them, so that an
        error anywhere on the way shows.
        """
        own: dict[SliceKey, EncodedSlice] = {}
        for target, transfers in self._outgoing[index].items():
            if target not in members:
                continue
            for transfer in transfers:
                key = slice_key(transfer)
                if key not in own:
                    tensor = self._transport.slice_of(transfer)
                    own[key] = EncodedSlice.encode(transfer, tensor, self._plan)
                for checksum in own[key].checksums:
                    report.add(target, checksum.tolist())
                report.num_bytes += sum(self._plan.sizes_of(transfer))
        return own

    def _encode(
        self,
        transfer: Transfer,
        own: Mapping[SliceKey, EncodedSlice],
        held: Mapping[_BlockKey, torch.Tensor],
    ) -> EncodedSlice:
        """Encode a slice for the target beside this rank, from wherever it came."""
        if transfer.source_rank == self._topology.rank:
            return own[slice_key(transfer)]
        tensor = held[transfer.hf_name, transfer.hf_start, transfer.length]
        return EncodedSlice.encode(transfer, tensor, self._plan)

    def _hand_over(
        self,
        store: SignedStore,
        delivery: _Delivery,
        transfers: Sequence[Transfer],
        own: Mapping[SliceKey, EncodedSlice],
        held: Mapping[_BlockKey, torch.Tensor],
        timeout_s: float,
        report: SendReport,
    ) -> None:
        """Put a bucket into a half of the target's buffer, once the receiver has emptied that half."""
        engine, tp_rank = delivery.target
        if delivery.is_over or not transfers:
            return
        if engine in report.faults:
            # Another rank of the same server failed, and a server gets its weights as a whole or not at all.
            self._give_up(store, delivery)
            return
        number, delivery.num_filled = delivery.num_filled, delivery.num_filled + 1
        try:
            if number >= _HALVES:
                self._await_taken(store, delivery.rank, number - _HALVES, timeout_s * _RECEIVER_SHARE)
            self._fill(delivery.target, number % _HALVES, [self._encode(t, own, held) for t in transfers])
            store.set(f"filled/{delivery.rank}/{number}", "ok")
        except (RuntimeError, OSError) as error:
            report.faults[engine] = f"rank {self._topology.rank}: TP rank {tp_rank} took no weights: {error}"
            self._give_up(store, delivery)

    def _give_up(self, store: SignedStore, delivery: _Delivery) -> None:
        delivery.is_over = True
        # The receiver may be waiting for either half.
        for number in range(max(0, delivery.num_filled - _HALVES), delivery.num_filled + 1):
            store.set(f"filled/{delivery.rank}/{number}", "gone")

    def _await_taken(self, store: SignedStore, rank: int, number: int, timeout_s: float) -> None:
        """Wait until a receiver has emptied a half. Raises RuntimeError when it failed or takes too long."""
        taken, deadline = f"taken/{rank}/{number}", time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while store.get(taken) is None:
            # A report before the last bucket can only be an error.
            if store.get(f"report/{rank}") is not None:
                raise RuntimeError("the receiver gave up")
            if time.monotonic() > deadline:
                raise RuntimeError(f"bucket {number} was not taken in {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        store.delete(taken)

    def _fill(self, target: Target, half: int, slices: Sequence[EncodedSlice]) -> None:
        """Copy slices, and their checksums behind them, into a half of the target's buffer."""
        memory = self._buffer(target).memory
        tensors = [tensor for encoded in slices for tensor in encoded.tensors]
        checksums = torch.stack([checksum for encoded in slices for checksum in encoded.checksums])
        offsets = staging_offsets([tensor.nbytes for tensor in tensors])
        start = half * (memory.numel() // _HALVES)
        for tensor, offset in zip([*tensors, checksums], offsets, strict=False):
            destination = memory[start + offset : start + offset + tensor.nbytes].view(tensor.dtype)
            destination.view(tensor.shape).copy_(tensor)
        # The receiver reads on a stream of another process: the copies must be over when it hears of them.
        self._topology.platform.synchronize()

    def _buffer(self, target: Target) -> SharedBuffer:
        """Return the target's buffer, which holds two of its largest buckets."""
        if target not in self._staging:
            half = max(
                staging_offsets([size for t in transfers for size in self._plan.sizes_of(t)])[-1]
                for transfers in self._incoming[target]
            )
            self._staging[target] = SharedBuffer(_HALVES * half, self._topology.platform.device)
        return self._staging[target]


def _length(block: WeightBlock) -> int:
    return block.tensor.shape[block.dim]
