"""The [policy] table: the policy update."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.section import NameOrPath, NonNegativeFloat, PositiveFloat, UnitInterval

Aggregation = Literal["token", "sequence", "constant"]
KLEstimator = Literal["k1", "k2", "k3"]

NO_CORRECTION = ("auto", "none")
"""Values of policy.correction that name no ratio; PrimeConfig.corrected_policy decides what auto is."""


class PolicyConfig(OptimizerConfig):
    """The policy's loss and its update; the defaults are the paper's 7B run."""

    lr: NonNegativeFloat = 5e-7
    weight_decay: NonNegativeFloat = 0.01
    loss: NameOrPath = "ppo_clip"
    """A module of algorithm/policy_losses (ppo_clip, gspo, cispo), or a class as "package.module:Class"."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The probability ratio is clipped above at 1 + clip_high; larger than clip_low is DAPO's clip-higher."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound c of dual clip: the loss of a token with a negative advantage is at most -c * advantage; off by default."""
    aggregation: Aggregation = "token"
    """token averages over all tokens of a minibatch, sequence over the means of its responses, and constant divides the
    sum by rollout.max_response_tokens for each response (Dr. GRPO), so that no token weighs less in a long response.
    Losses and gradients are smaller with constant than with the others; AdamW's steps are not, but policy.grad_clip
    then clips less."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus in the loss."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of KL(policy || reference) in the loss."""
    kl_estimator: KLEstimator = "k3"
    """With d = log-prob of the policy - of the reference: k1 = d (its gradient is 0 on average, so it measures but does
    not restrain), k2 = d^2 / 2, k3 = exp(-d) - 1 + d (never negative)."""
    correction: NameOrPath = "auto"
    """Weights for the difference between the policy before a step and what sampled the batch, an older version or an
    engine that rounds otherwise: the ratio of their probabilities, of each token (token), of the response (sequence) or
    its geometric mean over tokens (geometric); none for no weights; or a class as "package.module:Class". auto is token
    if rollout.max_staleness is at least 1, and none otherwise."""
    correction_low: UnitInterval = 0.0
    """Smallest ratio that is used as it is."""
    correction_high: Annotated[float, Field(ge=1)] = 2.0
    """Largest ratio that is used as it is."""
    correction_outside: Literal["truncate", "mask"] = "truncate"
    """Weight of a ratio outside of correction_low and correction_high: truncate takes the nearer of the two, mask takes
    0, so that the token, or the response, is not trained."""
