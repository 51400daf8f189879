"""The configuration of a whole run: all tables, the rules between tables, and values that follow from several tables.

This package imports neither torch nor Megatron, so a configuration can be checked on a login node in milliseconds. Each
class is one TOML table; the string below a field is its documentation.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import model_validator

from megatron_prime.config.megatron.schema import MegatronConfig
from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.optimizer import OptimizerConfig, warmup_fault
from megatron_prime.config.presets import PresetConfig, preset_lines
from megatron_prime.config.section import NonNegative, Section, UserPath
from megatron_prime.config.stages import Stage
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.checkpoint import CheckpointConfig
from megatron_prime.config.tables.data import DataConfig
from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.config.tables.evaluation import EvaluationConfig
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.config.tables.model import ModelConfig
from megatron_prime.config.tables.observability.logging import LoggingConfig
from megatron_prime.config.tables.observability.profile import ProfileConfig
from megatron_prime.config.tables.observability.rollout_log import RolloutLogConfig
from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.memory import MemoryConfig
from megatron_prime.config.tables.performance.overlap import OverlapConfig
from megatron_prime.config.tables.platform import PlatformConfig
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.config.tables.prm import READ_WITHOUT_A_MODEL, PRMConfig
from megatron_prime.config.tables.prm_evaluation import PRMEvaluationConfig
from megatron_prime.config.tables.prm_training import PRMTrainingConfig
from megatron_prime.config.tables.reference import ReferenceConfig
from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.config.tables.rollout import RolloutConfig
from megatron_prime.config.tables.sft import SFTConfig
from megatron_prime.config.tables.trainer import TrainerConfig


class PrimeConfig(Section):
    """The configuration of a run: one attribute per TOML table, besides two options of their own."""

    run_dir: UserPath
    """Folder for everything that the run writes: logs, metrics, checkpoints, exported models."""
    seed: NonNegative = 0
    """Seed of all random numbers: order of the prompts, sampling, initialization of new weights."""
    preset: PresetConfig = PresetConfig()
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    platform: PlatformConfig = PlatformConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    rollout_log: RolloutLogConfig = RolloutLogConfig()
    reward: RewardConfig = RewardConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    filter: FilterConfig = FilterConfig()
    prm: PRMConfig = PRMConfig()
    reference: ReferenceConfig = ReferenceConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()
    trainer: TrainerConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardsConfig = GuardsConfig()
    logging: LoggingConfig = LoggingConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sft: SFTConfig = SFTConfig()
    prm_evaluation: PRMEvaluationConfig = PRMEvaluationConfig()
    prm_training: PRMTrainingConfig = PRMTrainingConfig()
    fp8: Fp8Config = Fp8Config()
    overlap: OverlapConfig = OverlapConfig()
    profile: ProfileConfig = ProfileConfig()
    megatron: MegatronConfig = MegatronConfig()

    def preset_lines(self) -> list[str]:
        """Return what the preset of the run sets, as lines to print; empty without one."""
        return list(preset_lines(self.preset.name, self.model_dump(mode="json")))

    def notes(self) -> list[str]:
        """Return what the run does without being told, as lines to print beside the batch arithmetic."""
        lines = self.preset_lines()
        if self.rollout.samples_ahead and self.policy.correction == "auto":
            policy = self.corrected_policy
            lines.append(
                f"off-policy  rollout.max_staleness = {self.rollout.max_staleness}: policy.correction = "
                f"{policy.correction!r}, ratios from {policy.correction_low:g} to {policy.correction_high:g} "
                f"({policy.correction_outside})"
            )
        return lines

    @property
    def model_options(self) -> ModelOptions:
        """The tables that models and their optimizers take together."""
        return ModelOptions(fp8=self.fp8, overlap=self.overlap, megatron=self.megatron)

    @property
    def reads_rows(self) -> bool:
        """True if a verifier or an environment may read the messages of a prompt or the other columns of its row."""
        return self.reward.reads_rows or self.environment.is_multi_turn

    @property
    def corrected_policy(self) -> PolicyConfig:
        """The [policy] table with what policy.correction = "auto" stands for in this run."""
        if self.policy.correction != "auto":
            return self.policy
        return self.policy.model_copy(
            update={"correction": "token" if self.rollout.samples_ahead else "none"}
        )

    @property
    def has_reference_model(self) -> bool:
        """True if the run holds a reference model of its own, for process rewards or for a KL term."""
        has_log_ratio = self.prm.enabled and not self.prm.is_critic
        return self.reference.mode == "freeze" and (has_log_ratio or self.policy.kl_coef > 0)

    @property
    def prm_path(self) -> Path:
        """The checkpoint that the PRM starts from."""
        return self.prm.path or self.model.path

    @property
    def reference_path(self) -> Path:
        """The checkpoint of the frozen reference in training; by default the PRM's: process rewards then start at 0."""
        return self.reference.path or self.prm_path

    @property
    def evaluated_reference_path(self) -> Path:
        """The checkpoint that `eval-prm` and `serve-prm` compare the PRM with: by default the policy."""
        return self.reference.path or self.model.path

    def model_paths(self, command: str) -> dict[str, Path]:
        """Return the checkpoint of each role ("policy", "prm", "reference") that a command loads.

        `command` is "train", "sft", "train_prm", "evaluate", "evaluate_prm" or "serve_prm". The tokenizer is always the
        policy's.
        """
        if command in ("evaluate_prm", "serve_prm"):
            return {"prm": self.prm_path, "reference": self.evaluated_reference_path}
        if command == "train_prm":
            return {"prm": self.prm_path, "reference": self.reference_path}
        paths = {"policy": self.model.path}
        if command == "train" and self.prm.has_model:
            paths["prm"] = self.prm_path
        if command == "train" and self.has_reference_model:
            paths["reference"] = self.reference_path
        return paths

    @property
    def has_evaluation(self) -> bool:
        """True if there are held-out prompts or benchmarks to evaluate on."""
        return bool(self.data.evaluation or self.evaluation.benchmarks)

    @property
    def offline_prm(self) -> PRMConfig:
        """The [prm] table of `train-prm`: its objective, with the optimizer of [prm_training]."""
        optimizer = {name: getattr(self.prm_training, name) for name in OptimizerConfig.model_fields}
        return self.prm.model_copy(update={**optimizer, "enabled": True, "update_order": "after"})

    def stage(self, command: str) -> Stage:
        """Return the stage of the run that a command (one of stages.RESUMABLE) is."""
        if command == "sft":
            folder, output = self.run_dir / "sft_log", self.sft.output or self.run_dir / "sft"
            return Stage(command, folder, self.sft.num_steps, self.sft.eval_every, "policy", output)
        if command == "train_prm":
            settings = self.prm_training
            folder, output = self.run_dir / "prm_log", settings.output or self.run_dir / "prm"
            return Stage(command, folder, settings.num_steps, settings.eval_every, "prm", output)
        exported = self.run_dir / "hf" if self.checkpoint.export_hf else None
        trainer = self.trainer
        return Stage(command, self.run_dir, trainer.num_steps, trainer.eval_every, "policy", exported)

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        # The rules of all groups are checked, so that a user sees every fault at once. Pydantic calls this method
        # only if each table is valid by itself.
        faults = [
            *self._faults_of_the_algorithm(),
            *self._faults_of_the_prm_source(),
            *self._faults_of_the_schedules(),
            *self._faults_of_the_batch(),
            *self._faults_of_the_filter(),
            *self._faults_of_the_memory(),
            *self._faults_of_the_environment(),
            *self._faults_of_the_machine(),
            *self._faults_of_the_acceleration(),
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults_of_the_algorithm(self) -> Iterator[str]:
        # Log-probs at different temperatures differ even for equal models, so process rewards would not start at 0.
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

    def _faults_of_the_prm_source(self) -> Iterator[str]:
        if not self.prm.enabled or self.prm.has_model:
            return
        source = "prm.source = 'policy'"
        for name, field in PRMConfig.model_fields.items():
            value = getattr(self.prm, name)
            if name not in READ_WITHOUT_A_MODEL and value != field.get_default(call_default_factory=True):
                shown = str(value) if isinstance(value, Path) else value
                yield f"prm.{name} = {shown!r} has no effect with {source}, which has no PRM: leave it out"
        if self.reference.mode == "policy":
            yield (
                f"reference.mode = 'policy' with {source} compares the policy with itself, and every process reward "
                "would be 0: set reference.mode = 'freeze'"
            )
        # Log-probs at different temperatures differ even for equal models.
        if self.rollout.temperature != 1.0:
            yield (
                f"{source} takes the policy's log-probs at rollout.temperature = {self.rollout.temperature}, and the "
                "reference is scored at 1: set the temperature to 1"
            )
        recipes = self.fp8.recipe_of("policy"), self.fp8.recipe_of("reference")
        if recipes[0] != recipes[1]:
            yield (
                f"{source} compares the policy with the reference, but fp8.policy = {recipes[0]!r} and the reference's "
                f"{recipes[1]!r} differ: process rewards would be rounding noise where they must be 0"
            )

    def _faults_of_the_environment(self) -> Iterator[str]:
        if self.environment.is_multi_turn and self.rollout.replays_routing:
            yield (
                "rollout.sglang.routing_replay records the experts of one request, but each turn of an environment is "
                "a request of its own: leave one out"
            )

    def _faults_of_the_memory(self) -> Iterator[str]:
        if self.memory.offload_reference and not self.has_reference_model:
            yield "memory.offload_reference = true, but this run holds no reference model: leave it out"
        if self.memory.offload_prm and not self.prm.has_model:
            reason = "prm.source = 'policy'" if self.prm.enabled else "prm.enabled = false"
            yield f"memory.offload_prm = true, but {reason}: leave it out"

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
        # The same holds for different FP8 recipes, whose rounding errors do not cancel.
        if self.reference.mode == "policy" and self.prm.has_model and recipes["policy"] != recipes["prm"]:
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
                "overlap.param_gather gathers the PRM's weights in a later pass, but memory.offload_prm frees them "
                "before: leave one out"
            )
        if overlap.tensor_parallel and not self.parallel.sequence_parallel:
            yield "overlap.tensor_parallel = true needs parallel.tensor > 1 and parallel.sequence_parallel = true"

    def _faults_of_the_filter(self) -> Iterator[str]:
        buffer, longest = self.filter.overlong_buffer_tokens, self.rollout.max_response_tokens
        if buffer is not None and buffer > longest:
            yield f"filter.overlong_buffer_tokens = {buffer} exceeds rollout.max_response_tokens = {longest}"

    def _faults_of_the_schedules(self) -> Iterator[str]:
        num_steps, warmup = self.trainer.num_steps, self.advantage.process_warmup_steps
        if self.prm.enabled and warmup >= num_steps:
            yield (
                f"advantage.process_warmup_steps = {warmup} is no less than trainer.num_steps = {num_steps}: process "
                "rewards would never count. Lower it, or set prm.enabled = false"
            )
        for name, role in (("policy", self.policy), ("prm", self.prm)):
            if role.lr_warmup_steps >= num_steps:
                yield f"{name}." + warmup_fault(role.lr_warmup_steps, "trainer.num_steps", num_steps)

    def _faults_of_the_batch(self) -> Iterator[str]:
        num_responses = self.trainer.prompts_per_step * self.rollout.group_size
        for name, role in (("policy", self.policy), ("prm", self.prm)):
            if num_responses % role.num_minibatches:
                yield (
                    f"{name}.num_minibatches = {role.num_minibatches} does not divide the batch of "
                    f"trainer.prompts_per_step * rollout.group_size = {num_responses} responses"
                )
        # A sequence is never divided between microbatches, so the longest one must fit into a single microbatch.
        longest = self.rollout.max_sequence_tokens
        if longest > self.trainer.max_tokens_per_microbatch:
            yield (
                f"one sequence can have rollout.max_prompt_tokens + max_response_tokens = {longest} tokens, "
                "more than trainer.max_tokens_per_microbatch = "
                f"{self.trainer.max_tokens_per_microbatch}: raise the latter"
            )
