"""Cross-entropy between the PRM's sequence score and the outcome.

Shapes: B responses.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows, SummedPrefixes
from megatron_prime.algorithm.registry import Requirements


@dataclass(frozen=True)
class Objective(SummedPrefixes):
    """-label * log sigmoid(score) - (1 - label) * log sigmoid(-score); fractional labels are soft labels."""

    requires: ClassVar[Requirements] = Requirements()

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return None: every response has its loss by itself."""
        return None

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the cross-entropies, from logits: a sigmoid first would saturate and lose the gradient."""
        scores_B = rows.scores_B
        return binary_cross_entropy_with_logits(scores_B, labels_B.to(scores_B.dtype), reduction="none")
