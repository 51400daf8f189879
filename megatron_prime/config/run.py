"""Every knob of a run, as frozen pydantic models.

This package imports neither torch nor Megatron, so a configuration can be checked on a login node in
milliseconds. Each section is one TOML table; the string below a field is its documentation.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.acceleration import AccelerationConfig, Fp8Config, OverlapConfig
from megatron_prime.config.megatron.schema import MegatronConfig
from megatron_prime.config.section import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    UnitInterval,
    UserPath,
)
from megatron_prime.config.tables.data import (
    DataConfig,
    EvaluationConfig,
    FilterConfig,
    LayoutName,
    PRMEvaluationConfig,
)
from megatron_prime.config.tables.memory import MemoryConfig
from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.config.tables.rollout import SGLangConfig


class ModelConfig(Section):
    """The HF checkpoint from which policy, PRM and reference start."""

    path: UserPath
    """HF checkpoint directory (config.json, safetensors, tokenizer) of the policy; or what tools/hf_to_megatron.py
    wrote of one, for the training models alone: an engine that reads weights from disk needs safetensors."""


class ParallelConfig(Section):
    """How one model is spread over the processes; the data-parallel size is whatever is left."""

    tensor: Positive = 1
    """Tensor-parallel size: must divide attention heads, KV heads and the FFN."""
    pipeline: Positive = 1
    """Pipeline-parallel size: must divide the number of layers."""
    virtual_pipeline: Positive = 1
    """Chunks of layers a pipeline stage: smaller bubbles, more messages (interleaved schedule); needs pipeline > 1."""
    context: Positive = 1
    """Context-parallel size: ranks that share each sequence."""
    expert: Positive = 1
    """Expert-parallel size: must divide the experts; it re-uses the tensor, context and data-parallel ranks."""
    expert_tensor: Positive = 1
    """Tensor-parallel size of each expert; expert * expert_tensor must divide the processes of a pipeline stage."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel ranks."""
    num_processes: Positive | None = None
    """Processes to start when not under torchrun; default the fewest that hold the model."""

    @property
    def model_size(self) -> int:
        """Processes of one data-parallel replica."""
        return self.tensor * self.pipeline * self.context

    @property
    def min_processes(self) -> int:
        """Fewest processes: whole replicas of the model that hold all experts."""
        expert_size = self.pipeline * self.expert * self.expert_tensor
        return math.lcm(self.model_size, expert_size)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel needs tensor > 1; set parallel.sequence_parallel = false")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ValueError(f"virtual_pipeline = {self.virtual_pipeline} needs pipeline > 1")
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


class PlatformConfig(Section):
    """The machine: CPU over gloo or GPUs over NCCL."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA when torch sees a GPU."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations in training."""
    threads_per_process: Positive = 1
    """CPU threads a process (torch.set_num_threads)."""
    timeout_s: PositiveFloat = 600.0
    """Deadline of every collective, in seconds."""
    layers: Literal["auto", "torch", "transformer_engine"] = "auto"
    """What layers are made of: auto takes NVIDIA's Transformer Engine on GPUs where it imports, else plain torch."""


class RolloutConfig(Section):
    """How responses are sampled from the policy."""

    engine: Literal["local", "sglang"] = "local"
    """Rollout engine; local runs inside the training processes, sglang in servers beside them."""
    sglang: SGLangConfig = SGLangConfig()
    group_size: Positive = 4
    """Responses a prompt (the paper's K)."""
    max_prompt_tokens: Positive = 1024
    """Longer prompts are dropped when the data is read."""
    max_response_tokens: Positive = 3072
    """A response that reaches this length is truncated."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; policy log-probs use the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass to sample from."""
    max_batch_size: Positive = 256
    """Sequences that the embedded engine decodes at once."""
    logprob_alarm: PositiveFloat = 1.0
    """Warn when the mean |train - rollout| log-prob of a step exceeds this (nats)."""


class OptimizerConfig(Section):
    """AdamW and its schedule, for one role."""

    lr: NonNegativeFloat
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of a decay."""
    lr_warmup_steps: NonNegative = 0
    """Linear warm-up, in trainer steps."""
    lr_decay: Literal["constant", "linear", "cosine"] = "constant"
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: NonNegativeFloat = 1.0
    """Clip the global gradient norm to this; 0 switches it off."""
    load_balance_coef: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss of a mixture of experts, a mean over sequences; off by default."""
    num_minibatches: Positive = 1
    """Optimizer steps in one pass over the batch."""
    num_epochs: Positive = 1
    """Passes over the batch a step."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} exceeds lr = {self.lr}")
        return self


class PolicyConfig(OptimizerConfig):
    """The policy's update: PPO clip and its options."""

    lr: NonNegativeFloat = 5e-7
    weight_decay: NonNegativeFloat = 0.01
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Ratio clip below 1."""
    clip_high: PositiveFloat = 0.2
    """Ratio clip above 1; larger than clip_low is clip-higher."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound c of dual clip; off by default."""
    aggregation: Literal["token", "sequence"] = "token"
    """Mean over tokens, or of sequence means."""
    entropy_coef: NonNegativeFloat = 0.0
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the KL to the reference in the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    tis_cap: PositiveFloat | None = None
    """Truncated importance sampling: cap on exp(old - rollout log-probs); off by default."""


class PRMConfig(OptimizerConfig):
    """The implicit process reward model."""

    enabled: bool = True
    """false trains by outcome rewards alone (RLOO with the same trainer)."""
    path: UserPath | None = None
    """HF checkpoint to start from; default model.path."""
    lr: NonNegativeFloat = 1e-6
    grad_clip: NonNegativeFloat = 10.0
    beta: PositiveFloat = 0.05
    """Scale of the log-ratio (Eq. 3)."""
    loss: Literal["ce", "dpo", "bon_acc", "bon_rm"] = "ce"
    update_order: Literal["after", "before", "none", "reverse"] = "after"
    """after and reverse score with the PRM before this step's update, before with the updated one."""
    granularity: Literal["token", "step", "whole"] = "token"
    reward_scale: Literal["beta", "raw"] = "beta"
    """raw leaves beta to the loss (released code)."""


class ReferenceConfig(Section):
    """The reference of the log-ratio."""

    mode: Literal["freeze", "policy"] = "freeze"
    """freeze keeps the starting weights; policy takes the old policy's log-probs: one model less."""
    path: UserPath | None = None
    """HF checkpoint of the frozen reference; default prm.path."""


class AdvantageConfig(Section):
    """From rewards to advantages (Eq. 4-8)."""

    estimator: Literal["rloo", "grpo", "reinforce", "prm_value"] = "rloo"
    process_baseline: Literal["sequence_sum", "sequence_spread", "token_mean", "released"] = "released"
    """Form of the process baseline: Eq. 5 as printed, the same once a response, Eq. 5 averaged, the released code."""
    process_normalization: Literal["none", "batch_max"] = "batch_max"
    whitening: Literal["none", "joint", "per_source"] = "joint"
    gamma_outcome: UnitInterval = 1.0
    gamma_process: UnitInterval = 1.0
    outcome_coef: NonNegativeFloat = 1.0
    process_coef: NonNegativeFloat = 1.0


class TrainerConfig(Section):
    """The loop."""

    num_steps: Positive
    """Iterations of Algorithm 1."""
    prompts_per_step: Positive = 256
    """Prompts in one training batch, after filtering."""
    max_tokens_per_microbatch: Positive = 16384
    """Packed tokens of one forward pass on one rank."""
    logprob_chunk_tokens: Positive = 1024
    """Tokens whose logits exist at one time."""
    eval_every: NonNegative = 0
    """Evaluate every so many steps; 0 at the start and the end only."""
    logprob_kernel: Literal["auto", "torch", "triton"] = "auto"
    """What works on the logits: auto takes the Triton kernels on a GPU that has triton, and plain torch elsewhere."""


class CheckpointConfig(Section):
    """Saving and resuming."""

    save_every: NonNegative = 0
    """Save every so many steps and at the end; 0 at the end only."""
    keep_last: Positive = 2
    """Newest complete checkpoints to keep."""
    keep_best: NonNegative = 1
    """Checkpoints of the highest held-out accuracy to keep besides, of those saved at a step that was evaluated."""
    async_save: bool = False
    """Write checkpoints while training goes on; costs host memory for a copy of what a rank writes."""
    on_damage: Literal["fallback", "stop"] = "fallback"
    """When the newest checkpoint is damaged: set it aside and resume from the one before, or stop."""
    on_write_error: Literal["stop", "continue"] = "stop"
    """When a checkpoint cannot be written (a full disk): stop, or warn and train on; the last one must be written."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest complete checkpoint."""
    export_hf: bool = True
    """Write the final policy as an HF checkpoint to run_dir/hf."""


class GuardsConfig(Section):
    """What is done about updates that are not finite, and when metrics raise an alarm."""

    max_skipped_in_a_row: Positive = 3
    """An update with a loss or gradient that is not finite is skipped; so many of a role in a row stop the run."""
    alarm_window: Annotated[int, Field(ge=2)] = 20
    """Steps that an alarm looks back on."""
    spike_metrics: tuple[str, ...] = ("prm/loss", "prm/grad_norm", "policy/grad_norm", "sft/loss")
    """Metrics whose spikes raise an alarm."""
    spike_sigmas: PositiveFloat = 8.0
    """A spike is so many robust standard deviations over the median, and twice the median at least."""
    reward_fraction: UnitInterval = 0.5
    """Alarm when the mean accuracy over the window falls below this share of its best; 0 switches it off."""
    entropy_fraction: UnitInterval = 0.1
    """The same for the policy's entropy."""


class SFTConfig(OptimizerConfig):
    """Supervised warm-up of the policy."""

    lr: NonNegativeFloat = 1e-5
    weight_decay: NonNegativeFloat = 0.01
    data: tuple[UserPath, ...] = ()
    """jsonl or parquet files of prompts with responses."""
    response_field: str = "response"
    """Column with the response text."""
    num_steps: Positive = 1000
    batch_size: Positive = 64
    """Responses in one optimizer step, over all ranks."""
    output: UserPath | None = None
    """Where the HF checkpoint goes; default run_dir/sft."""
    messages_field: str | None = None
    """Column with whole conversations, the assistant's message last; replaces data.prompt_field and response_field."""
    layout: LayoutName | None = None
    """Where the prompt stands in a row; default data.layout."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Shares by data source or file, as data.weights has them for the training prompts."""

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.lr_warmup_steps >= self.num_steps:
            raise ValueError(_warmup_fault(self.lr_warmup_steps, "num_steps", self.num_steps))
        return self


class PrimeConfig(Section):
    """A whole run."""

    run_dir: UserPath
    """Everything the run writes: logs, metrics, checkpoints, export."""
    seed: NonNegative = 0
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    platform: PlatformConfig = PlatformConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    filter: FilterConfig = FilterConfig()
    prm: PRMConfig = PRMConfig()
    reference: ReferenceConfig = ReferenceConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()
    trainer: TrainerConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardsConfig = GuardsConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sft: SFTConfig = SFTConfig()
    prm_evaluation: PRMEvaluationConfig = PRMEvaluationConfig()
    fp8: Fp8Config = Fp8Config()
    overlap: OverlapConfig = OverlapConfig()
    megatron: MegatronConfig = MegatronConfig()

    @property
    def acceleration(self) -> AccelerationConfig:
        """What makes models faster, together."""
        return AccelerationConfig(fp8=self.fp8, overlap=self.overlap)

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        faults = [
            *self._faults_of_the_algorithm(),
            *self._faults_of_the_schedules(),
            *self._faults_of_the_batch(),
            *self._faults_of_the_filter(),
            *self._faults_of_the_memory(),
            *self._faults_of_the_machine(),
            *self._faults_of_the_acceleration(),
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults_of_the_algorithm(self) -> Iterator[str]:
        group_size = self.rollout.group_size
        if group_size == 1 and self.advantage.estimator in ("rloo", "grpo"):
            yield (
                f"advantage.estimator = {self.advantage.estimator!r} compares the responses of a group: "
                "set rollout.group_size to 2 or more, or use reinforce"
            )
        if group_size == 1 and self.prm.enabled and self.prm.loss != "ce":
            yield f"prm.loss = {self.prm.loss!r} compares the responses of a group: raise rollout.group_size"
        if self.reference.mode == "policy" and self.rollout.temperature != 1.0:
            yield (
                "reference.mode = 'policy' uses the policy's own log-probs, which are taken at "
                f"rollout.temperature = {self.rollout.temperature}; the PRM is scored at 1: "
                "set the temperature to 1"
            )
        if self.policy.kl_coef > 0 and self.rollout.temperature != 1.0:
            yield (
                f"policy.kl_coef = {self.policy.kl_coef} compares the policy, whose log-probs are taken at "
                f"rollout.temperature = {self.rollout.temperature}, with a reference at 1: "
                "set the temperature to 1, or the coefficient to 0"
            )
        if self.advantage.estimator == "prm_value":
            if not self.prm.enabled:
                yield "advantage.estimator = 'prm_value' needs the PRM: set prm.enabled = true"
            if self.advantage.gamma_process != 1.0:
                yield (
                    f"advantage.gamma_process = {self.advantage.gamma_process}: 'prm_value' needs 1, "
                    "its value is a plain sum"
                )

    def _faults_of_the_memory(self) -> Iterator[str]:
        has_reference = self.reference.mode == "freeze" and (self.prm.enabled or self.policy.kl_coef > 0)
        if self.memory.offload_reference and not has_reference:
            yield "memory.offload_reference = true, but this run holds no reference model: leave it out"
        if self.memory.offload_prm and not self.prm.enabled:
            yield "memory.offload_prm = true, but prm.enabled = false: leave it out"

    def _faults_of_the_machine(self) -> Iterator[str]:
        if self.trainer.logprob_kernel == "triton" and self.platform.device == "cpu":
            yield (
                "trainer.logprob_kernel = 'triton' needs a GPU, but platform.device = 'cpu': use 'auto' or 'torch'"
            )

    def _faults_of_the_acceleration(self) -> Iterator[str]:
        fp8, overlap, platform = self.fp8, self.overlap, self.platform
        recipes = {role: fp8.recipe_of(role) for role in ("policy", "prm")}
        used = [f"fp8.{role} = {recipe!r}" for role, recipe in recipes.items() if recipe != "none"]
        wanted = [*used, *(["overlap.tensor_parallel = true"] if overlap.tensor_parallel else [])]
        for what in wanted:
            if platform.device == "cpu" or platform.layers == "torch":
                yield (
                    f"{what} needs Transformer Engine on GPUs, but platform.device = {platform.device!r} and "
                    f"platform.layers = {platform.layers!r}"
                )
        if used and platform.dtype != "bf16":
            yield f"{used[0]} needs platform.dtype = 'bf16', not {platform.dtype!r}"
        if self.reference.mode == "policy" and self.prm.enabled and recipes["policy"] != recipes["prm"]:
            yield (
                f"reference.mode = 'policy' compares the PRM with the policy, but {used} differ: process rewards would "
                "be rounding noise where they must be 0; set fp8.policy and fp8.prm alike"
            )
        if recipes["policy"] == "delayed" and self.memory.recompute.recomputes("layernorm"):
            yield "memory.recompute.modules holds 'layernorm', which cannot be recomputed with fp8.policy = 'delayed'"
        if fp8.primary_weights and (self.memory.offload_prm or self.memory.offload_reference):
            yield "fp8.primary_weights cannot be offloaded: leave out memory.offload_prm and offload_reference"
        if overlap.param_gather and self.memory.offload_prm:
            yield (
                "overlap.param_gather gathers the PRM's weights in a later pass, but memory.offload_prm lets them go "
                "before: leave one out"
            )
        if overlap.tensor_parallel and not self.parallel.sequence_parallel:
            yield "overlap.tensor_parallel = true needs parallel.tensor > 1 and parallel.sequence_parallel = true"

    def _faults_of_the_filter(self) -> Iterator[str]:
        buffer, longest = self.filter.overlong_buffer_tokens, self.rollout.max_response_tokens
        if buffer is not None and buffer > longest:
            yield f"filter.overlong_buffer_tokens = {buffer} exceeds rollout.max_response_tokens = {longest}"

    def _faults_of_the_schedules(self) -> Iterator[str]:
        num_steps = self.trainer.num_steps
        for name, role in (("policy", self.policy), ("prm", self.prm)):
            if role.lr_warmup_steps >= num_steps:
                yield f"{name}." + _warmup_fault(role.lr_warmup_steps, "trainer.num_steps", num_steps)

    def _faults_of_the_batch(self) -> Iterator[str]:
        num_responses = self.trainer.prompts_per_step * self.rollout.group_size
        for name, role in (("policy", self.policy), ("prm", self.prm)):
            if num_responses % role.num_minibatches:
                yield (
                    f"{name}.num_minibatches = {role.num_minibatches} does not divide the batch of "
                    f"trainer.prompts_per_step * rollout.group_size = {num_responses} responses"
                )
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if longest > self.trainer.max_tokens_per_microbatch:
            yield (
                f"one sequence can have rollout.max_prompt_tokens + max_response_tokens = {longest} tokens, "
                "more than trainer.max_tokens_per_microbatch = "
                f"{self.trainer.max_tokens_per_microbatch}: raise the latter"
            )


def _warmup_fault(warmup_steps: int, name: str, num_steps: int) -> str:
    return (
        f"lr_warmup_steps = {warmup_steps} must be less than {name} = {num_steps}: "
        "the learning rate would never reach its peak"
    )
