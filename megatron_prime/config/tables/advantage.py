"""[advantage]: from rewards to advantages."""

from typing import Literal

from megatron_prime.config.section import NonNegativeFloat, Section, UnitInterval


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
