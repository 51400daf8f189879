"""Carries out a ReshardPlan between the training ranks themselves: no file, no gather of whole tensors.

Slices that a rank needs from itself are views. Of the others, large ones that are contiguous where they lie travel as
they are, and all the rest of a bucket as one flat message a pair of ranks, over gloo or NCCL.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_prime.observability.heartbeat import beat
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.buckets import Bucket
from megatron_prime.resharding.buckets import buckets as cut
from megatron_prime.resharding.plan import ReshardPlan, Transfer
from megatron_prime.types import WeightBlock

_DIRECT_BYTES = 1 << 20
"""From this size on a message of its own costs less than a copy into a shared one."""


class RankTransport:
    """Delivers each rank the blocks of HF tensors that the plan gives it.

    Args:
        plan: targets must be ranks of the training job.
        parameters: this rank's Megatron parameters by name.
        topology: the layout that the plan was made for.
        dtype: what travels; the cast happens at the source.
        max_bucket_bytes: most bytes that a rank sends or gets at a time.
        buckets: the plan's, cut before; may lack what does not concern this rank.
    """

    def __init__(
        self,
        plan: ReshardPlan,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
        max_bucket_bytes: int = 256 << 20,
        buckets: Sequence[Bucket] | None = None,
    ) -> None:
        self._parameters = parameters
        self._rank = topology.rank
        self._device = topology.platform.device
        self._dtype = dtype
        self._buckets = cut(plan, max_bucket_bytes) if buckets is None else buckets

    def deliver(self) -> Iterator[list[WeightBlock]]:
        """Yield this rank's blocks bucket by bucket; a tensor's blocks all come in one bucket.

        Blocks may share memory with the model: use them before asking for the next bucket. Collective over all ranks,
        which must all exhaust the iterator.
        """
        for bucket in self._buckets:
            beat("bucket of weights")
            yield self._deliver_bucket(bucket)

    def _deliver_bucket(self, bucket: Bucket) -> list[WeightBlock]:
        outgoing: dict[int, list[Transfer]] = defaultdict(list)
        incoming: dict[int, list[Transfer]] = defaultdict(list)
        blocks = []
        for transfer in bucket.transfers:
            if transfer.source_rank == transfer.target_rank == self._rank:
                blocks.append(_block(transfer, self.slice_of(transfer)))
            elif transfer.source_rank == self._rank:
                outgoing[transfer.target_rank].append(transfer)
            elif transfer.target_rank == self._rank:
                incoming[transfer.source_rank].append(transfer)
        operations: list[dist.P2POp] = []
        for rank, transfers in outgoing.items():
            operations += [dist.P2POp(dist.isend, message, rank) for message in self._messages(transfers)]
        buffers: dict[int, list[torch.Tensor]] = {}
        for rank, transfers in incoming.items():
            buffers[rank] = [self._empty(group) for group in _grouped(transfers)]
            operations += [dist.P2POp(dist.irecv, buffer, rank) for buffer in buffers[rank]]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        for rank, transfers in incoming.items():
            for buffer, group in zip(buffers[rank], _grouped(transfers), strict=True):
                blocks += self._unpack(buffer, group)
        return blocks

    def slice_of(self, transfer: Transfer) -> torch.Tensor:
        """What a transfer from this rank carries, cast; a view where nothing must be cast."""
        parameter = self._parameters[transfer.source_param].detach()
        return parameter.narrow(transfer.dim, transfer.source_local_start, transfer.length).to(self._dtype)

    def _messages(self, transfers: Sequence[Transfer]) -> list[torch.Tensor]:
        """What goes to one rank; a message of one slice is a view unless it must be cast."""
        slices = [[self.slice_of(t).reshape(-1) for t in group] for group in _grouped(transfers)]
        return [group[0] if len(group) == 1 else torch.cat(group) for group in slices]

    def _empty(self, transfers: Sequence[Transfer]) -> torch.Tensor:
        num_bytes = sum(transfer.num_bytes for transfer in transfers)
        return torch.empty(num_bytes // self._dtype.itemsize, dtype=self._dtype, device=self._device)

    def _unpack(self, buffer: torch.Tensor, transfers: Sequence[Transfer]) -> list[WeightBlock]:
        sizes = [transfer.num_bytes // self._dtype.itemsize for transfer in transfers]
        return [
            _block(transfer, flat.view(_block_shape(transfer, flat.numel())))
            for transfer, flat in zip(transfers, buffer.split(sizes), strict=True)
        ]


def _grouped(transfers: Sequence[Transfer]) -> list[list[Transfer]]:
    """The messages that carry the transfers from one rank to another: both of them ask here."""
    direct = [[t] for t in transfers if t.dim == 0 and t.num_bytes >= _DIRECT_BYTES]
    packed = [t for t in transfers if t.dim != 0 or t.num_bytes < _DIRECT_BYTES]
    return [*direct, packed] if packed else direct


def _block(transfer: Transfer, tensor: torch.Tensor) -> WeightBlock:
    return WeightBlock(transfer.hf_name, transfer.dim, transfer.hf_start, tensor)


def _block_shape(transfer: Transfer, num_elements: int) -> tuple[int, ...]:
    """Shape of a slice of a vector or of a matrix (all that decoders have)."""
    if num_elements == transfer.length:
        # A vector, or a matrix whose other dim is 1: the receiver's check of the shape tells.
        return (transfer.length,)
    other = num_elements // transfer.length
    return (transfer.length, other) if transfer.dim == 0 else (other, transfer.length)
