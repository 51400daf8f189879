"""The [prm] table: the process reward model."""

from typing import Literal

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.section import NameOrPath, NonNegativeFloat, Positive, PositiveFloat, UserPath

Granularity = Literal["token", "step", "turn", "whole"]
RewardScale = Literal["beta", "raw"]
ScoredTokens = Literal["all", "policy", "environment"]
PRMSource = Literal["model", "policy"]
VALUE = "value"
"""The prm.loss of a critic."""
READ_WITHOUT_A_MODEL = (
    "enabled",
    "source",
    "beta",
    "granularity",
    "scored_tokens",
    "reward_scale",
    "probe",
    "probe_every",
)
"""Options that process rewards of prm.source = "policy" depend on, too."""


class PRMConfig(OptimizerConfig):
    """The implicit process reward model, its loss and its update."""

    enabled: bool = True
    """false trains on outcome rewards alone, with the same trainer."""
    source: PRMSource = "model"
    """model trains a PRM. policy holds none: the policy before the update takes its place in the log-ratio with the
    frozen reference (SPRO), so that no PRM takes memory or time, and no option of its model or training may be set."""
    path: UserPath | None = None
    """HF checkpoint to start from; default model.path."""
    lr: NonNegativeFloat = 1e-6
    grad_clip: NonNegativeFloat = 10.0
    beta: PositiveFloat = 0.05
    """Scale of the log-ratio (Eq. 3)."""
    loss: NameOrPath = "ce"
    """A module of algorithm/prm_objectives (ce, ce_intercept, ipvrm, noisy_and, dpo, bon_acc, bon_rm, dpo_units), or a
    class as "package.module:Class". value makes the PRM a critic, which predicts the outcome from every prefix and
    needs no reference; it goes with advantage.estimator = "gae"."""
    update_order: Literal["after", "before", "none", "reverse"] = "after"
    """after and reverse score with the PRM before this step's update, before with the updated one; none: no update."""
    granularity: Granularity = "token"
    """Tokens that carry a process reward: every token, or the last one that the policy wrote in each step, in each turn
    (needs an environment) or in the whole response, which then carry the sum. Replies belong to what precedes them."""
    scored_tokens: ScoredTokens = "all"
    """Tokens whose log-ratios make up the PRM's score of a response, and that have process rewards: all, or those of
    the policy or of the environment alone. Replies of an environment are the evidence on the decisions before them.
    With environment, the PRM has to explain the outcome by the replies, and has no opinion of its own on decisions."""
    reward_scale: RewardScale = "beta"
    """beta multiplies the log-ratio by prm.beta (Eq. 3); raw uses beta in the loss alone, as the released code does."""
    probe: UserPath | None = None
    """A file of solutions in ProcessBench's format (problem, steps, label) that the PRM scores now and then, for the
    metrics probe/...: what it knows of single steps. An error is planted into each correct solution. It needs a few
    dozen solutions, never trains, and costs one forward pass of them."""
    probe_every: Positive = 10
    """Trainer steps between probes; there is also one before the first step and one after the last."""

    @property
    def has_model(self) -> bool:
        """True if the run holds a PRM of its own."""
        return self.enabled and self.source == "model"

    @property
    def is_critic(self) -> bool:
        """True if the run's own PRM is a critic: it scores values of prefixes instead of the response's tokens."""
        return self.has_model and self.loss == VALUE

    @property
    def is_trained(self) -> bool:
        """True if the run has a PRM and updates it."""
        return self.has_model and self.update_order != "none"
