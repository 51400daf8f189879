"""Executes a ReshardPlan between the training ranks themselves, without files and without gathering whole tensors.

Slices that a rank needs from itself are views. Large slices that are contiguous in memory are sent as they are; the
other slices of a bucket are packed into one message per pair of ranks, over gloo or NCCL.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.observability.heartbeat import beat
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.buckets import Bucket
from megatron_prime.resharding.buckets import buckets as cut
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import ReshardPlan, Transfer, plan_reshard
from megatron_prime.types import WeightBlock

_DIRECT_BYTES = 1 << 20
"""From this size on, a message of its own costs less than a copy into a packed one."""


def training_layout(topology: Topology) -> TrainingLayout:
    """Return the part of a topology that decides which rank holds which weights."""
    return TrainingLayout(
        tp=topology.tensor_size,
        pp=topology.pipeline_size,
        dp=topology.data_size,
        cp=topology.context_size,
        vpp=topology.virtual_size,
        ep=topology.expert_size,
        etp=topology.expert_tensor_size,
        layers_per_stage=topology.layers_per_stage,
    )


def plan_for(shape: ModelShape, topology: Topology, engines: EngineLayout, dtype: torch.dtype) -> ReshardPlan:
    """Return the plan that transfers the weights of this job to engines of a given layout."""
    return plan_reshard(shape, training_layout(topology), engines, bytes_per_element=dtype.itemsize)


class RankTransport:
    """Delivers to each rank the blocks of HF tensors that the plan assigns to it.

    Args:
        plan: its targets must be ranks of the training job.
        parameters: this rank's Megatron parameters by name.
        topology: the layout for which the plan was made.
        dtype: dtype in which weights are sent; slices are cast on the rank that sends them.
        max_bucket_bytes: upper limit of the bytes that a rank sends or receives at a time.
        buckets: buckets of the plan, if they were computed before; transfers of other ranks may be left out.
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
        """Yield this rank's blocks bucket by bucket; all blocks of a tensor come in one bucket.

        Blocks may share memory with the model or with a buffer, so use them before advancing to the next bucket.
        Collective: every rank must exhaust the iterator, since the others wait for its slices.
        """
        for bucket in self._buckets:
            beat("bucket of weights")
            yield self._deliver_bucket(bucket)

    def _deliver_bucket(self, bucket: Bucket) -> list[WeightBlock]:
        # batch_isend_irecv posts all sends and receives at once, so that no order of ranks can deadlock.
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
            # Messages have no tags: both ranks go through the transfers in the plan's order, so the n-th send to a
            # rank meets its n-th receive.
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
        """Return the slice of a transfer from this rank, cast; a view of the parameter if it has the dtype already."""
        parameter = self._parameters[transfer.source_param].detach()
        return parameter.narrow(transfer.dim, transfer.source_local_start, transfer.length).to(self._dtype)

    def _messages(self, transfers: Sequence[Transfer]) -> list[torch.Tensor]:
        """Return the messages to one rank; a message of one slice is a view unless it must be cast."""
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
    """Group the transfers from one rank to another into messages. Both ranks must group alike."""
    # Rows (dim 0) are contiguous and need no copy before a send. Columns have to be copied in any case, so they are
    # packed.
    direct = [[t] for t in transfers if t.dim == 0 and t.num_bytes >= _DIRECT_BYTES]
    packed = [t for t in transfers if t.dim != 0 or t.num_bytes < _DIRECT_BYTES]
    return [*direct, packed] if packed else direct


def _block(transfer: Transfer, tensor: torch.Tensor) -> WeightBlock:
    return WeightBlock(transfer.hf_name, transfer.dim, transfer.hf_start, tensor)


def _block_shape(transfer: Transfer, num_elements: int) -> tuple[int, ...]:
    """Return the shape of a slice; the weights of decoders are vectors and matrices only."""
    if num_elements == transfer.length:
        # A vector. It could also be a matrix whose other dim is 1; the sink would then refuse the shape.
        return (transfer.length,)
    other = num_elements // transfer.length
    return (transfer.length, other) if transfer.dim == 0 else (other, transfer.length)
