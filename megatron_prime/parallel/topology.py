"""The grid of tensor, pipeline, context, expert and data parallelism, and this rank's coordinates in it.

A Topology wraps Megatron's `parallel_state`, whose groups exist once per process: building the next topology destroys
the groups of the one before. Use it in this order:

    platform.start_process_group()
    topology = build_topology(platform, tensor=2)
    ...
    topology.close()
    leave_job()  # once per process, at its very end
"""

import gc
import math
from dataclasses import dataclass, replace

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.parallel.platform import Platform


@dataclass(frozen=True)
class Topology:
    """Sizes of the parallel axes and this rank's coordinates on them.

    The rank order is Megatron's default: the tensor axis varies fastest, then context, data and pipeline. Expert
    parallelism divides the same ranks of a pipeline stage independently: expert tensor fastest, then expert, then
    expert data parallelism.
    """

    platform: Platform
    rank: int
    world_size: int
    tensor_size: int
    tensor_rank: int
    pipeline_size: int
    pipeline_rank: int
    data_size: int
    data_rank: int
    sequence_parallel: bool
    context_size: int = 1
    context_rank: int = 0
    virtual_size: int = 1
    """Number of model chunks per pipeline stage (interleaved schedule); 1 without a virtual pipeline."""
    layers_per_stage: tuple[int, ...] | None = None
    """Number of layers of each chunk, in model order; None chooses them by cost (see hf.stages)."""
    expert_size: int = 1
    expert_rank: int = 0
    expert_tensor_size: int = 1
    expert_tensor_rank: int = 0
    host_group: dist.ProcessGroup | None = None
    """All ranks, over gloo, for everything that is not on the device; None where the job's own group is gloo already.

    With NCCL a rank that waits for the others occupies its GPU, on which a server may be sampling, and gathered objects
    pass through GPU memory."""

    @property
    def is_first_stage(self) -> bool:
        """True on the pipeline stage that holds the embedding."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """True on the pipeline stage that holds the output layer."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The stages of this rank's pipeline."""
        return _group(parallel_state.get_pipeline_model_parallel_group())

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that hold replicas of this rank's weights."""
        return _group(parallel_state.get_data_parallel_group())

    @property
    def context_group(self) -> dist.ProcessGroup:
        """The ranks that process different tokens of the same sequences."""
        return _group(parallel_state.get_context_parallel_group())

    @property
    def process_groups(self) -> ProcessGroupCollection:
        """The same groups in the form that Megatron-core's constructors take."""
        return ProcessGroupCollection.use_mpu_process_groups()

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last stage in this rank's pipeline."""
        return parallel_state.get_pipeline_model_parallel_last_rank()

    def close(self) -> None:
        """Destroy the topology's process groups; the job's own group stays. Collective over all ranks.

        Models built in this topology cannot be used afterwards. Call it on success only: after an error on one rank the
        others may never arrive, and the end of the process frees its groups anyway.
        """
        _destroy_groups(self.platform)


def _group(group: object) -> dist.ProcessGroup:
    assert isinstance(group, dist.ProcessGroup)
    return group


def _destroy_groups(platform: Platform) -> None:
    """Destroy all groups that Megatron created in this process; do nothing if there are none."""
    if not parallel_state.model_parallel_is_initialized():
        return
    # A rank that closes a group early would break the collective in which a slower rank still reads from it.
    dist.barrier(device_ids=[platform.device.index] if platform.is_cuda else None)
    # The list starts with None, which stands for the job's own group; this rank is a member of all the others.
    groups = [group for group in parallel_state._global_process_group_list or () if group is not None]
    # Megatron only drops its references. The groups stay registered with torch, and each gloo group keeps its threads
    # and sockets, until torch has destroyed it and the last reference is gone.
    while groups:
        dist.destroy_process_group(groups.pop())
    parallel_state.destroy_model_parallel()
    # Models refer to their groups and are parts of reference cycles, so they are not freed when their owner drops them.
    gc.collect()


def leave_job() -> None:
    """Destroy the job's own process group; the process can take part in no further collective.

    Collective over all ranks; do nothing if no job was joined. A process cannot join the same job again, because
    the ranks would find the stale addresses of the first time in the store.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def configured_topology(platform: Platform, parallel: ParallelConfig, seed: int) -> Topology:
    """Return the topology of a run's configuration; see `build_topology`."""
    return build_topology(
        platform,
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence_parallel,
        seed,
        context=parallel.context,
        virtual_pipeline=parallel.virtual_pipeline,
        expert=parallel.expert,
        expert_tensor=parallel.expert_tensor,
        layers_per_stage=parallel.layers_per_stage,
    )


def build_topology(
    platform: Platform,
    tensor: int = 1,
    pipeline: int = 1,
    sequence_parallel: bool = False,
    seed: int = 0,
    context: int = 1,
    *,
    virtual_pipeline: int = 1,
    expert: int = 1,
    expert_tensor: int = 1,
    layers_per_stage: tuple[int, ...] | None = None,
) -> Topology:
    """Create Megatron's process groups over the running job and seed the parallel random streams.

    Groups of an earlier topology of this process are destroyed first. Collective over all ranks.

    Raises:
        ValueError: The sizes do not divide the processes, or there is a virtual pipeline without a pipeline.
    """
    world_size = dist.get_world_size()
    _check_sizes(world_size, tensor, pipeline, context, virtual_pipeline, expert * expert_tensor)
    # Megatron holds its groups in module-level state, so only one topology can exist at a time.
    _destroy_groups(platform)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual_pipeline if virtual_pipeline > 1 else None,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
        distributed_timeout_minutes=math.ceil(platform.timeout.total_seconds() / 60),
        create_gloo_process_groups=True,
    )
    # force_reset_rng: an earlier topology of this process may have created the streams already.
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 1, force_reset_rng=True)
    return Topology(
        platform=platform,
        rank=dist.get_rank(),
        world_size=world_size,
        tensor_size=tensor,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_size=pipeline,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        sequence_parallel=sequence_parallel,
        context_size=context,
        context_rank=parallel_state.get_context_parallel_rank(),
        virtual_size=virtual_pipeline,
        layers_per_stage=layers_per_stage,
        expert_size=expert,
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
        expert_tensor_size=expert_tensor,
        expert_tensor_rank=_group(parallel_state.get_expert_tensor_parallel_group()).rank(),
        host_group=_host_group(platform),
    )


def _check_sizes(
    world_size: int, tensor: int, pipeline: int, context: int, virtual_pipeline: int, expert_size: int
) -> None:
    if world_size % (tensor * pipeline * context):
        raise ValueError(
            f"{world_size} processes are not a multiple of parallel.tensor * pipeline * context = "
            f"{tensor} * {pipeline} * {context}"
        )
    if world_size // pipeline % expert_size:
        raise ValueError(
            f"parallel.expert * expert_tensor = {expert_size} does not divide the "
            f"{world_size // pipeline} processes of a pipeline stage"
        )
    if virtual_pipeline > 1 and pipeline == 1:
        raise ValueError(f"parallel.virtual_pipeline = {virtual_pipeline} needs parallel.pipeline > 1")


def _host_group(platform: Platform) -> dist.ProcessGroup | None:
    """Create the group of all ranks over gloo unless the job's own group is that. Collective over all ranks."""
    return None if platform.backend == "gloo" else _gloo_group(platform, "HOST_GROUP")


def with_own_host_group(topology: Topology) -> Topology:
    """Return the topology for a thread beside the training: its host group is a new one. Collective over all ranks.

    Collectives of one group must come in the same order on every rank, which two threads cannot promise.
    """
    return replace(topology, host_group=_gloo_group(topology.platform, "THREAD_GROUP"))


def _gloo_group(platform: Platform, name: str) -> dist.ProcessGroup:
    # Megatron's list of groups, to which this function adds it, is the one that `_destroy_groups` destroys.
    ranks = list(range(dist.get_world_size()))
    return _group(
        parallel_state.create_group(ranks, timeout=platform.timeout, backend="gloo", group_desc=name)
    )
