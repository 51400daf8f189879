"""Optimizer settings that the tables of all trained roles share: [policy], [prm] and [sft]."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule, for one role."""

    lr: NonNegativeFloat
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of a decay."""
    lr_warmup_steps: NonNegative = 0
    """Trainer steps of linear warm-up from 0 to `lr`; by default there is none."""
    lr_decay: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule after the warm-up: constant keeps `lr`; linear and cosine decay to `min_lr` at the last step."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the mean of the gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the mean of the squared gradients."""
    adam_eps: PositiveFloat = 1e-8
    """Constant added to the denominator of the update."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, as a factor of the learning rate."""
    grad_clip: NonNegativeFloat = 1.0
    """Maximum of the global gradient norm; 0 switches clipping off."""
    load_balance_coef: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss of a mixture of experts, a mean over sequences; 0 by default."""
    num_minibatches: Positive = 1
    """Optimizer steps per pass over the batch of a trainer step."""
    num_epochs: Positive = 1
    """Passes over the batch per trainer step."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} exceeds lr = {self.lr}")
        return self


def warmup_fault(warmup_steps: int, name: str, num_steps: int) -> str:
    """Return the message for a warm-up that is not shorter than the `name` = `num_steps` of the training."""
    return (
        f"lr_warmup_steps = {warmup_steps} must be less than {name} = {num_steps}: "
        "the learning rate would never reach its peak"
    )
