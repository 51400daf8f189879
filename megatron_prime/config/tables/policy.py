"""[policy]: the policy update."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.section import NonNegativeFloat, PositiveFloat


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
