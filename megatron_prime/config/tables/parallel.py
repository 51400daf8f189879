"""The [parallel] table: how one model is split over processes."""

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from megatron_prime.config.section import Positive, Section


def _check_stage_layers(value: object) -> object:
    # By itself, pydantic reports for each member of the union why the value is not one.
    if value == "auto":
        return value
    if isinstance(value, list | tuple) and value and all(type(count) is int and count > 0 for count in value):
        return tuple(value)
    raise ValueError('must be "auto" or a list of whole numbers from 1, such as [24, 23]')


StageLayers = Annotated[Literal["auto"] | tuple[int, ...], BeforeValidator(_check_stage_layers)]


class ParallelConfig(Section):
    """Parallel sizes of every model; the remaining factor of the number of processes is the data-parallel size."""

    tensor: Positive = 1
    """Tensor-parallel size: must divide attention heads, KV heads and the FFN."""
    pipeline: Positive = 1
    """Pipeline-parallel size: stages, each with some of the layers."""
    virtual_pipeline: Positive = 1
    """Chunks of layers per pipeline stage (interleaved schedule): less idle time, more messages; needs pipeline > 1."""
    stage_layers: StageLayers = "auto"
    """Layers of each pipeline stage, or of each of the pipeline * virtual_pipeline chunks in the order of the layers;
    auto makes the stages equally expensive, the output layer counted, and evenly long where that is nearly as good."""
    context: Positive = 1
    """Context-parallel size: ranks that share each sequence."""
    expert: Positive = 1
    """Expert-parallel size: must divide the experts; uses the same ranks as tensor, context and data parallelism."""
    # Megatron's own default is the tensor-parallel size; whole experts are faster (ADR 0012).
    expert_tensor: Positive = 1
    """Tensor-parallel size of each expert; expert * expert_tensor must divide the processes of a pipeline stage."""
    sequence_parallel: bool = False
    """Split norms and residuals along the sequence over the tensor-parallel ranks; needs tensor > 1."""
    num_processes: Positive | None = None
    """Number of processes to start when not under torchrun or Slurm; default the fewest that hold the model."""

    @property
    def layers_per_stage(self) -> tuple[int, ...] | None:
        """The layers of each chunk, or None if they are chosen by cost."""
        return None if self.stage_layers == "auto" else self.stage_layers

    @property
    def model_size(self) -> int:
        """Number of processes per data-parallel replica."""
        return self.tensor * self.pipeline * self.context

    @property
    def min_processes(self) -> int:
        """Minimum number of processes: whole replicas of the model that together hold all experts."""
        expert_size = self.pipeline * self.expert * self.expert_tensor
        # Dense layers and experts divide the same ranks in different ways, and both need whole groups.
        return math.lcm(self.model_size, expert_size)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel needs tensor > 1; set parallel.sequence_parallel = false")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ValueError(f"virtual_pipeline = {self.virtual_pipeline} needs pipeline > 1")
        given = self.layers_per_stage
        if given is not None and len(given) != self.pipeline * self.virtual_pipeline:
            raise ValueError(
                f"stage_layers has {len(given)} numbers: it needs pipeline * virtual_pipeline = {self.pipeline} * "
                f"{self.virtual_pipeline}, in the order of the layers"
            )
        if self.num_processes is not None and self.num_processes % self.model_size:
            raise ValueError(
                f"num_processes = {self.num_processes} is not a multiple of tensor * pipeline * context = "
                f"{self.tensor} * {self.pipeline} * {self.context}"
            )
        if self.num_processes is not None and self.num_processes % self.min_processes:
            raise ValueError(
                f"num_processes = {self.num_processes} is not a multiple of pipeline * expert * expert_tensor = "
                f"{self.pipeline} * {self.expert} * {self.expert_tensor}"
            )
        return self
