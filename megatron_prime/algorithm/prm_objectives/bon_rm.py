"""The dpo objective with best-of-N weights by score: responses that a best-of-N choice would pick count more.

Shapes: B responses.
"""

from dataclasses import dataclass

from torch import Tensor

from megatron_prime.algorithm.prm_pairs import (
    PairTargets,
    PairwiseObjective,
    best_of_n_weights_B,
    other_side_scores_B,
)
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows


@dataclass(frozen=True)
class Objective(PairwiseObjective):
    """The dpo loss times n * (share of the group whose score is at most its own)^(n - 1), n the group's size."""

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return the mean score of the other side of each response's group, with best-of-N weights by score."""
        assert rows is not None, "required by prior_scores"
        scores_B = rows.scores_B
        return PairTargets(
            other_side_scores_B(scores_B, labels_B, group_ids_B),
            best_of_n_weights_B(scores_B, group_ids_B).to(scores_B.dtype),
        )
