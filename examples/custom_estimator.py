"""An advantage estimator and a PRM objective of your own, named by import path.

    PYTHONPATH=examples megatron-prime train run.toml advantage.estimator=custom_estimator:DrGRPO
    PYTHONPATH=examples megatron-prime train run.toml prm.loss=custom_estimator:SmoothedCE

`DrGRPO` is Dr. GRPO (arXiv 2503.20783), which centres rewards without rescaling them. GRPO divides by the standard
deviation of the group, so prompts that are nearly always or nearly never solved weigh more than others. Dr. GRPO
subtracts the group's mean and stops there. It fulfils `megatron_prime.algorithm.advantage.AdvantageEstimator`.

`SmoothedCE` is the paper's cross-entropy for a verifier that errs once in twenty times. It fulfils
`megatron_prime.algorithm.prm_loss.PRMObjective`. A policy loss (`policy.loss`) can be named in the same way; the
modules of `megatron_prime.algorithm` that end in estimators, prm_objectives and policy_losses are further examples.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.groups import group_mean
from megatron_prime.algorithm.prm_objectives import ce
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import discounted_return_BT, masked_mean, zero_padding
from megatron_prime.config.tables.advantage import AdvantageConfig


@dataclass(frozen=True)
class DrGRPO:
    """Rewards minus the mean of their group."""

    config: AdvantageConfig
    requires: ClassVar[Requirements] = Requirements(group=True)

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Subtract the group's mean outcome, the response's own included."""
        return outcome_rewards_B - group_mean(outcome_rewards_B, group_ids_B)

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Subtract the group's mean token reward, then take discounted returns."""
        mean_B = group_mean(masked_mean(process_rewards_BT, positions_BT, dim=1), group_ids_B)
        centred_BT = zero_padding(process_rewards_BT - mean_B[:, None], positions_BT)
        return discounted_return_BT(centred_BT, mask_BT, self.config.gamma_process)


class SmoothedCE(ce.Objective):
    """Cross-entropy of the sequence score with labels of 0.05 and 0.95, so that no score has to grow for ever."""

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the cross-entropies with the smoothed labels; `rows` has the log-ratio of every token."""
        return super().losses_B(rows, 0.05 + 0.9 * labels_B, targets)
