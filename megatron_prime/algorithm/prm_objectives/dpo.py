"""DPO within a group: a right response should outscore the wrong ones, and a wrong one fall short of the right ones.

Shapes: B responses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prime.algorithm.prm_pairs import PairTargets, PairwiseObjective, other_side_scores_B
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows


@dataclass(frozen=True)
class Objective(PairwiseObjective):
    """-log sigmoid(sign * (score - other score)), sign = +1 where the label is positive and -1 elsewhere."""

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return the mean score of the other side of each response's group, with weights of 1."""
        assert rows is not None, "required by prior_scores"
        scores_B = rows.scores_B
        return PairTargets(other_side_scores_B(scores_B, labels_B, group_ids_B), torch.ones_like(scores_B))
