"""Cross-entropy between the PRM's sequence score and the outcome.

Shapes: B responses.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True)
class Objective:
    """-label * log sigmoid(score) - (1 - label) * log sigmoid(-score); fractional labels are soft labels."""

    config: PRMConfig
    requires: ClassVar[Requirements] = Requirements()

    def targets(self, scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> PairTargets | None:
        """Return None: every response has its loss by itself."""
        return None

    def losses_B(self, scores_B: Tensor, labels_B: Tensor, targets: PairTargets | None) -> Tensor:  # noqa: N802
        """Return the cross-entropies, from logits: a sigmoid first would saturate and lose the gradient."""
        return binary_cross_entropy_with_logits(scores_B, labels_B.to(scores_B.dtype), reduction="none")
