"""The optimizer settings that the tables of every trained role share."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section


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


def warmup_fault(warmup_steps: int, name: str, num_steps: int) -> str:
    """Return the message for a warm-up that is not shorter than the `name` = `num_steps` of the training."""
    return (
        f"lr_warmup_steps = {warmup_steps} must be less than {name} = {num_steps}: "
        "the learning rate would never reach its peak"
    )
