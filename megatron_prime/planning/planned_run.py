"""The run to plan: a configuration, the shapes of its models, the GPUs, and assumptions about the run."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.hf.shape import ModelShape, read_shape
from megatron_prime.planning.gpus import GPU
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout

DTYPE_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Assumptions:
    """Quantities that no configuration states; each has a flag of `megatron-prime plan`."""

    prompt_tokens: float
    """Mean number of tokens per prompt."""
    response_tokens: float
    """Mean number of tokens per response."""
    mfu: float = 0.4
    """Model FLOPs utilization: the fraction of the peak FLOPs that matrix products reach."""
    decode_efficiency: float = 0.6
    """Fraction of the memory bandwidth that decoding reaches."""
    overhead_gib: float = 3.0
    """GiB per process and GPU for CUDA context, NCCL buffers and fragmentation."""


@dataclass(frozen=True)
class PlannedRun:
    """A run to plan."""

    config: PrimeConfig
    shapes: dict[str, ModelShape]
    """Shape of each role that the run has: policy, prm, reference."""
    num_processes: int
    gpu: GPU
    assumptions: Assumptions

    @cached_property
    def layout(self) -> TrainingLayout:
        """The layout of the training ranks.

        Raises:
            ValueError: If the number of processes is no multiple of a replica, or the sizes are inconsistent.
        """
        parallel = self.config.parallel
        if self.num_processes % parallel.min_processes:
            raise ValueError(
                f"{self.num_processes} processes are not a multiple of the {parallel.min_processes} that one replica "
                "of the layout needs"
            )
        return TrainingLayout(
            tp=parallel.tensor,
            pp=parallel.pipeline,
            cp=parallel.context,
            dp=self.num_processes // parallel.model_size,
            vpp=parallel.virtual_pipeline,
            ep=parallel.expert,
            etp=parallel.expert_tensor,
            layers_per_stage=parallel.layers_per_stage,
        )

    @property
    def dtype_bytes(self) -> int:
        """Bytes per element of weights and activations."""
        return DTYPE_BYTES[self.config.platform.dtype]

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles that have gradients and optimizer states."""
        return ("policy", "prm") if self.config.prm.is_trained else ("policy",)

    @property
    def engines(self) -> EngineLayout | None:
        """The layout of SGLang servers, or None for the embedded engine."""
        settings = self.config.rollout.sglang
        if not self.config.rollout.uses_servers:
            return None
        # Ranks from the training world size on stand for GPUs of their own.
        first = 0 if self.is_colocated else self.num_processes
        return EngineLayout.consecutive(
            self.num_servers, settings.tensor, ep=settings.expert, first_rank=first
        )

    @property
    def num_servers(self) -> int:
        """Number of SGLang servers, including external ones."""
        settings = self.config.rollout.sglang
        nodes = math.ceil(self.num_processes / self.gpu.gpus_per_node) if settings.nodes == "all" else 1
        # Attached servers are listed by URL; num_servers counts those that the run starts on a node.
        return len(settings.urls) or settings.num_servers * nodes

    @property
    def is_colocated(self) -> bool:
        """True if servers share the GPUs of the training ranks."""
        settings = self.config.rollout.sglang
        if not self.config.rollout.uses_servers:
            return False
        gpus = (gpu for server in range(settings.num_servers) for gpu in settings.server_gpus(server))
        return settings.is_colocated_on(range(min(self.num_processes, self.gpu.gpus_per_node)), gpus)

    @property
    def num_gpus(self) -> int:
        """Number of GPUs of the training ranks and of servers beside them."""
        has_own = self.config.rollout.uses_servers and not self.is_colocated
        return self.num_processes + (self.num_servers * self.config.rollout.sglang.tensor if has_own else 0)

    @property
    def rollouts(self) -> int:
        """Number of responses per step."""
        return self.config.trainer.prompts_per_step * self.config.rollout.group_size

    def microbatches(self, role: str) -> int:
        """Return the number of microbatches per minibatch and data-parallel rank."""
        config = self.config.policy if role == "policy" else self.config.prm
        tokens = self.tokens / config.num_minibatches / self.layout.dp
        return max(1, math.ceil(tokens / self.config.trainer.max_tokens_per_microbatch))

    @property
    def tokens(self) -> float:
        """Number of tokens in the sequences of one step, prompts and responses."""
        return self.rollouts * (self.assumptions.prompt_tokens + self.assumptions.response_tokens)

    def with_parallel(self, **sizes: int | bool | str | tuple[int, ...]) -> "PlannedRun":
        """Return the same run in another layout. Raises ValueError if the sizes are inconsistent."""
        parallel = ParallelConfig.model_validate({**self.config.parallel.model_dump(), **sizes})
        return replace(self, config=self.config.model_copy(update={"parallel": parallel}))


def read_planned_run(
    config: PrimeConfig, num_processes: int, gpu: GPU, assumptions: Assumptions | None = None
) -> PlannedRun:
    """Read the config.json of each role and return the run to plan.

    Args:
        config: The run's configuration.
        num_processes: Number of training processes, one per GPU.
        gpu: Kind of GPU.
        assumptions: By default, prompts and responses have half their maximum lengths.

    Raises:
        ValueError: If a config.json is missing or describes an unsupported model.
    """
    if assumptions is None:
        rollout = config.rollout
        assumptions = Assumptions(rollout.max_prompt_tokens / 2, rollout.max_response_tokens / 2)
    shapes = {role: read_shape(path) for role, path in config.model_paths("train").items()}
    return PlannedRun(config, shapes, num_processes, gpu, assumptions)
