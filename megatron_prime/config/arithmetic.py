"""Batch sizes and numbers of updates that follow from a configuration, before anything starts."""

from dataclasses import dataclass

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.run import PrimeConfig


@dataclass(frozen=True, slots=True)
class RoleUpdates:
    """The minibatches and epochs of one role in a step."""

    name: str
    responses_per_minibatch: int
    """Responses per optimizer step, over all processes."""
    num_minibatches: int
    num_epochs: int

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps per trainer step."""
        return self.num_minibatches * self.num_epochs


@dataclass(frozen=True, slots=True)
class BatchArithmetic:
    """The sizes that follow from a configuration and a number of processes."""

    num_processes: int
    tensor: int
    pipeline: int
    context: int
    data: int
    """Data-parallel size: num_processes / (tensor * pipeline * context); 0 when the processes do not divide."""
    prompts_per_step: int
    group_size: int
    num_steps: int
    max_tokens_per_sequence: int
    """Length of the longest prompt plus that of the longest response."""
    max_tokens_per_microbatch: int
    roles: tuple[RoleUpdates, ...]
    """The trained roles: the policy, then the PRM if it is trained."""

    @property
    def responses_per_step(self) -> int:
        """B, the number of prompts times the responses per prompt."""
        return self.prompts_per_step * self.group_size

    @property
    def num_rollouts(self) -> int:
        """Responses trained on in the whole run; filtering makes the engine sample more than that."""
        return self.responses_per_step * self.num_steps

    @staticmethod
    def of(config: PrimeConfig, num_processes: int) -> "BatchArithmetic":
        """Return the sizes for a configuration on `num_processes`. Never fails on a valid configuration."""
        num_responses = config.trainer.prompts_per_step * config.rollout.group_size
        roles = [_role_updates("policy", config.policy, num_responses)]
        if config.prm.is_trained:
            roles.append(_role_updates("prm", config.prm, num_responses))
        model_size = config.parallel.model_size
        return BatchArithmetic(
            num_processes=num_processes,
            tensor=config.parallel.tensor,
            pipeline=config.parallel.pipeline,
            context=config.parallel.context,
            # The layout may not fit the processes: the report is still printed, and another check raises the error.
            data=0 if num_processes % model_size else num_processes // model_size,
            prompts_per_step=config.trainer.prompts_per_step,
            group_size=config.rollout.group_size,
            num_steps=config.trainer.num_steps,
            max_tokens_per_sequence=config.rollout.max_sequence_tokens,
            max_tokens_per_microbatch=config.trainer.max_tokens_per_microbatch,
            roles=tuple(roles),
        )

    def lines(self) -> list[str]:
        """Return the arithmetic as text for the start of the log."""
        return [
            f"processes   {self.num_processes} = tensor {self.tensor} x pipeline {self.pipeline} "
            f"x context {self.context} x data {self.data}",
            f"batch       {self.prompts_per_step} prompts x {self.group_size} responses = "
            f"{self.responses_per_step} responses per step",
            *(self._role_line(role) for role in self.roles),
            f"microbatch  up to {self.max_tokens_per_microbatch} packed tokens per process; "
            f"one sequence has up to {self.max_tokens_per_sequence}",
            f"run         {self.num_steps} steps x {self.responses_per_step} = {self.num_rollouts} responses "
            "trained on (filtered prompts come on top)",
        ]

    def _role_line(self, role: RoleUpdates) -> str:
        epochs = f" x {role.num_epochs} epochs" if role.num_epochs > 1 else ""
        return (
            f"{role.name:<12}{role.num_minibatches} minibatches of {role.responses_per_minibatch} responses"
            f"{epochs} = {role.updates_per_step} updates per step, "
            f"{role.updates_per_step * self.num_steps} in the run"
        )


def _role_updates(name: str, role: OptimizerConfig, num_responses: int) -> RoleUpdates:
    return RoleUpdates(name, num_responses // role.num_minibatches, role.num_minibatches, role.num_epochs)
