"""Where this process stands in the grid of tensor, pipeline, context, expert and data parallelism.

The only user of Megatron's parallel_state: the rest of the project asks a Topology.
"""

import math
from dataclasses import dataclass, field

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_prime.config.megatron.schema import MegatronConfig
from megatron_prime.parallel.platform import Platform


@dataclass(frozen=True)
class Topology:
    """Sizes and this rank's coordinates.

    Rank order is Megatron's default: tensor fastest, then context, data, pipeline. Experts divide the ranks of a stage
    anew: expert tensor fastest, then expert, then replicas.
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
    """Chunks of layers that a pipeline stage holds; they go round the stages."""
    expert_size: int = 1
    expert_rank: int = 0
    expert_tensor_size: int = 1
    expert_tensor_rank: int = 0
    megatron: MegatronConfig = field(default_factory=MegatronConfig)
    """What models in this layout take from `[megatron]`."""

    @property
    def is_first_stage(self) -> bool:
        """True where the embedding lives."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """True where the output layer lives."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that split each matrix with this one."""
        return _group(parallel_state.get_tensor_model_parallel_group())

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The stages of this rank's pipeline."""
        return _group(parallel_state.get_pipeline_model_parallel_group())

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The replicas of this rank's shard."""
        return _group(parallel_state.get_data_parallel_group())

    @property
    def context_group(self) -> dist.ProcessGroup:
        """The ranks that share this rank's sequences, each holding some of their tokens."""
        return _group(parallel_state.get_context_parallel_group())

    @property
    def process_groups(self) -> ProcessGroupCollection:
        """Megatron's view of the same groups."""
        return ProcessGroupCollection.use_mpu_process_groups()

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last stage of this rank's pipeline."""
        return parallel_state.get_pipeline_model_parallel_last_rank()


def _group(group: object) -> dist.ProcessGroup:
    assert isinstance(group, dist.ProcessGroup)
    return group


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
) -> Topology:
    """Create Megatron's process groups over the running job and seed the parallel random streams.

    Raises ValueError when the number of processes is not a multiple of tensor * pipeline * context, when
    expert * expert_tensor does not divide the processes of a stage, or for a virtual pipeline without a pipeline.
    """
    world_size = dist.get_world_size()
    if world_size % (tensor * pipeline * context):
        raise ValueError(
            f"{world_size} processes are not a multiple of parallel.tensor * pipeline * context = "
            f"{tensor} * {pipeline} * {context}"
        )
    if world_size // pipeline % (expert * expert_tensor):
        raise ValueError(
            f"parallel.expert * expert_tensor = {expert} * {expert_tensor} does not divide the "
            f"{world_size // pipeline} processes of a pipeline stage"
        )
    if virtual_pipeline > 1 and pipeline == 1:
        raise ValueError(f"parallel.virtual_pipeline = {virtual_pipeline} needs parallel.pipeline > 1")
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
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
        expert_size=expert,
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
        expert_tensor_size=expert_tensor,
        expert_tensor_rank=_group(parallel_state.get_expert_tensor_parallel_group()).rank(),
    )
