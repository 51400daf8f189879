"""The dpo objective with best-of-N weights by outcome: responses that a best-of-N choice would pick count more.

Shapes: B responses.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from megatron_prime.algorithm.prm_pairs import (
    PairTargets,
    best_of_n_weights_B,
    other_side_scores_B,
    pair_losses_B,
)
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True)
class Objective:
    """The dpo loss times n * (share of the group whose label is at most its own)^(n - 1), n the group's size."""

    config: PRMConfig
    requires: ClassVar[Requirements] = Requirements(group=True)

    def targets(self, scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> PairTargets | None:
        """Return the mean score of the other side of each response's group, with best-of-N weights by outcome."""
        return PairTargets(
            other_side_scores_B(scores_B, labels_B, group_ids_B),
            best_of_n_weights_B(labels_B, group_ids_B).to(scores_B.dtype),
        )

    def losses_B(self, scores_B: Tensor, labels_B: Tensor, targets: PairTargets | None) -> Tensor:  # noqa: N802
        """Return the weighted losses of the pairs."""
        return pair_losses_B(scores_B, labels_B, targets)
