"""DPO within a group: a right response should outscore the wrong ones, and a wrong one fall short of the right ones.

Shapes: B responses.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megatron_prime.algorithm.prm_pairs import PairTargets, other_side_scores_B, pair_losses_B
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True)
class Objective:
    """-log sigmoid(sign * (score - other score)), sign = +1 where the label is positive and -1 elsewhere."""

    config: PRMConfig
    requires: ClassVar[Requirements] = Requirements(group=True)

    def targets(self, scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> PairTargets | None:
        """Return the mean score of the other side of each response's group, with weights of 1."""
        return PairTargets(other_side_scores_B(scores_B, labels_B, group_ids_B), torch.ones_like(scores_B))

    def losses_B(self, scores_B: Tensor, labels_B: Tensor, targets: PairTargets | None) -> Tensor:  # noqa: N802
        """Return the losses of the pairs."""
        return pair_losses_B(scores_B, labels_B, targets)
