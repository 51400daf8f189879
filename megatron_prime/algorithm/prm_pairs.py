"""Comparisons within a group, from which the pairwise PRM objectives (dpo, bon_acc, bon_rm, dpo_units) are made.

Shapes: B responses, P groups, G slots of the largest group, K scores of a response.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_prime.algorithm.groups import group_table
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows, SummedPrefixes
from megatron_prime.algorithm.registry import Requirements


@dataclass(frozen=True, eq=False)
class PairTargets(RowTargets):
    """Constants of a pairwise objective, computed once on whole groups before the update.

    Scores taken between minibatch updates would come from different PRMs.
    """

    other_scores_B: Tensor
    """Score that each response is compared with."""
    weights_B: Tensor
    """Weight of each response's loss."""


@dataclass(frozen=True)
class PairwiseObjective(SummedPrefixes):
    """Base of the objectives that compare a response with a score of its group's other side."""

    requires: ClassVar[Requirements] = Requirements(group=True, prior_scores=True)

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the weighted losses of the pairs; see `pair_losses_B`."""
        return pair_losses_B(rows.scores_B, labels_B, targets)


def other_side_scores_B(scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
    """Return the mean score of the group's members on the other side of each response's label, [B].

    The other side is the members with a strictly lower label where label > 0, and those with a strictly higher label
    elsewhere; the score is 0 where there are none.
    """
    return other_side_scores(scores_B[:, None], labels_B, group_ids_B)[:, 0]


def other_side_scores(scores_BK: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return `other_side_scores_B` for each of several scores of a response, [B, K]."""
    table = group_table(group_ids_B)
    labels_PG = table.gather(labels_B)
    # Axis 1 is the response itself, axis 2 the member that it is compared with.
    own_PG1, member_P1G = labels_PG[:, :, None], labels_PG[:, None, :]
    is_other_PGG = (
        torch.where(own_PG1 > 0, member_P1G < own_PG1, member_P1G > own_PG1) & table.filled[:, None, :]
    )
    num_others_PG = is_other_PGG.sum(dim=2).clamp(min=1)
    columns_BK = []
    # One score after another: all of them at once would hold every pair of a group for each.
    for scores_B in scores_BK.unbind(dim=1):
        sum_PG = torch.where(is_other_PGG, table.gather(scores_B)[:, None, :].double(), 0.0).sum(dim=2)
        columns_BK.append(table.scatter(sum_PG / num_others_PG).to(scores_B.dtype))
    return torch.stack(columns_BK, dim=1)


def best_of_n_weights_B(ranked_by_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
    """Return n * (share of the group <= own)^(n - 1) by the values given, float64 [B], n the group's size.

    Up to the factor n, this is the chance that n - 1 draws from the group do not beat the response.
    """
    table = group_table(group_ids_B)
    ranked_PG = table.gather(ranked_by_B)
    not_above_PGG = (ranked_PG[:, None, :] <= ranked_PG[:, :, None]) & table.filled[:, None, :]
    size_P1 = table.sizes[:, None].double()
    return table.scatter(size_P1 * (not_above_PGG.sum(dim=2) / size_P1) ** (size_P1 - 1))


def pair_losses_B(scores_B: Tensor, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
    """Return -log sigmoid(sign * (score - other score)) * weight, [B], differentiable in scores_B alone.

    Raises:
        ValueError: there are no targets.
    """
    if not isinstance(targets, PairTargets):
        raise ValueError("a pairwise PRM objective needs targets: pass those of prm_targets on whole groups")
    signs_B = (labels_B > 0).to(scores_B.dtype) * 2 - 1
    losses_B = -logsigmoid(signs_B * (scores_B - targets.other_scores_B.detach()))
    return losses_B * targets.weights_B.detach()
