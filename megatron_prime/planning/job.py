"""What is planned: a configuration, its models' shapes, the GPUs, and what must be guessed about the run."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.gpus import GPU
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout

DTYPE_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Guess:
    """What no configuration says; each has a flag."""

    prompt_tokens: float
    """Mean, of a prompt."""
    response_tokens: float
    """Mean, of a response."""
    mfu: float = 0.4
    """Share of the peak FLOPs that training reaches in its matrix products."""
    decode_efficiency: float = 0.6
    """Share of the memory bandwidth that decoding reaches."""
    overhead_gib: float = 3.0
    """CUDA context, NCCL buffers, fragmentation: of each process on a GPU."""


@dataclass(frozen=True)
class Job:
    """A run to plan."""

    config: PrimeConfig
    shapes: dict[str, ModelShape]
    """Of the roles that the run holds: policy, prm, reference."""
    num_processes: int
    gpu: GPU
    guess: Guess

    @property
    def layout(self) -> TrainingLayout:
        """Raises ValueError when the processes do not divide, or the sizes do not fit together."""
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
        )

    @property
    def dtype_bytes(self) -> int:
        """Of weights and activations."""
        return DTYPE_BYTES[self.config.platform.dtype]

    @property
    def trained(self) -> tuple[str, ...]:
        """Roles that hold gradients and optimizer states."""
        learns = self.config.prm.update_order != "none"
        return tuple(r for r in ("policy", "prm") if r in self.shapes and (r == "policy" or learns))

    @property
    def engines(self) -> EngineLayout | None:
        """SGLang servers that we start; None for the embedded engine and for servers elsewhere."""
        settings = self.config.rollout.sglang
        if self.config.rollout.engine != "sglang":
            return None
        first = 0 if self.is_colocated else self.num_processes
        return EngineLayout.consecutive(
            self.num_servers, settings.tensor, ep=settings.expert, first_rank=first
        )

    @property
    def num_servers(self) -> int:
        """SGLang servers, attached ones included."""
        settings = self.config.rollout.sglang
        nodes = math.ceil(self.num_processes / self.gpu.gpus_per_node) if settings.nodes == "all" else 1
        return len(settings.urls) or settings.num_servers * nodes

    @property
    def is_colocated(self) -> bool:
        """Whether servers share the training ranks' GPUs."""
        settings = self.config.rollout.sglang
        if self.config.rollout.engine != "sglang" or settings.urls:
            return False
        if settings.colocated is not None:
            return settings.colocated
        gpus = settings.gpu_ids or range(settings.num_servers * settings.tensor)
        return any(gpu < min(self.num_processes, self.gpu.gpus_per_node) for gpu in gpus)

    @property
    def rollouts(self) -> int:
        """Responses of one step."""
        return self.config.trainer.prompts_per_step * self.config.rollout.group_size

    def microbatches(self, role: str) -> int:
        """Of one minibatch, on one data rank."""
        config = self.config.policy if role == "policy" else self.config.prm
        tokens = self.tokens / config.num_minibatches / self.layout.dp
        return max(1, math.ceil(tokens / self.config.trainer.max_tokens_per_microbatch))

    @property
    def tokens(self) -> float:
        """Of one step's sequences."""
        return self.rollouts * (self.guess.prompt_tokens + self.guess.response_tokens)

    def with_parallel(self, **sizes: int | bool) -> "Job":
        """The same run in another layout. Raises ValueError when the sizes do not fit together."""
        parallel = ParallelConfig.model_validate({**self.config.parallel.model_dump(), **sizes})
        return replace(self, config=self.config.model_copy(update={"parallel": parallel}))


def job_of(config: PrimeConfig, num_processes: int, gpu: GPU, guess: Guess | None = None) -> Job:
    """Read each role's config.json. Raises ValueError when one is missing or not supported."""
    prm = config.prm.path or config.model.path
    paths = {"policy": config.model.path}
    if config.prm.enabled:
        paths["prm"] = prm
    if config.reference.mode == "freeze" and (config.prm.enabled or config.policy.kl_coef > 0):
        paths["reference"] = config.reference.path or prm
    if guess is None:
        rollout = config.rollout
        guess = Guess(rollout.max_prompt_tokens / 2, rollout.max_response_tokens / 2)
    return Job(config, {role: read_shape(path) for role, path in paths.items()}, num_processes, gpu, guess)


def read_shape(folder: Path) -> ModelShape:
    """The shape in a folder's config.json. Raises ValueError when there is none that is supported."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not hold an object")
    return ModelShape.from_hf_config(config)
