"""[prm]: the process reward model."""

from typing import Literal

from megatron_prime.config.optimizer import OptimizerConfig
from megatron_prime.config.section import NonNegativeFloat, PositiveFloat, UserPath


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
