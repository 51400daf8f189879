"""DPO on prefixes: after each step or turn, a right response should outscore the wrong ones to the same prompt.

iStar (arXiv 2509.19199) trains its PRM by DPO on whole trajectories, which is `dpo`, and uses its rewards by turn. Here
the sums of turns are compared too. With S_ik = beta * sum of q over the first k units of response i, replies included,
and O_ik the mean of S_jk over the members j of its group on the other side of its label,

    loss_i = mean_k -log sigmoid(sign_i * (S_ik - O_ik)),

sign_i = +1 for a positive label and -1 elsewhere. A response that has ended keeps its score, so that longer ones are
still compared with it, and the last comparison is that of `dpo` where the others are no longer. O comes from the PRM
before the update. The extension to prefixes is ours.

Shapes: B responses, T response tokens (right padded), P groups, G slots of the largest group, K units of the response
with most of them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_prime.algorithm.prm_pairs import other_side_scores
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows, SummedPrefixes
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import masked_mean


@dataclass(frozen=True, eq=False)
class UnitTargets(RowTargets):
    """The comparisons of each response's prefixes."""

    other_scores_BK: Tensor
    """Mean score of the other side after as many units."""
    has_unit_BK: Tensor
    """bool; whether the response has so many units."""


@dataclass(frozen=True)
class Objective(SummedPrefixes):
    """The mean over a response's units of the dpo losses of the prefixes that end with them."""

    requires: ClassVar[Requirements] = Requirements(group=True, prior_scores=True, units=True)

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return the mean score of the other side of each response's group after each of its units.

        Raises:
            ValueError: the rows have no units.
        """
        assert rows is not None, "required by prior_scores"
        numbers_BT = _unit_numbers_BT(rows)
        counts_B = numbers_BT[:, -1] + 1
        num_units = int(counts_B.max())
        scores_BK = _scores_after_units_BK(rows, numbers_BT, num_units)
        has_unit_BK = torch.arange(num_units, device=counts_B.device) < counts_B[:, None]
        return UnitTargets(other_side_scores(scores_BK, labels_B, group_ids_B), has_unit_BK)

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the mean loss of each response's comparisons.

        Raises:
            ValueError: there are no targets, or the rows have no units.
        """
        if not isinstance(targets, UnitTargets):
            raise ValueError(
                "prm.loss = 'dpo_units' needs targets: pass those of prm_targets on whole groups"
            )
        others_BK = targets.other_scores_BK.detach()
        scores_BK = _scores_after_units_BK(rows, _unit_numbers_BT(rows), others_BK.shape[1])
        signs_B1 = ((labels_B > 0).to(scores_BK.dtype) * 2 - 1)[:, None]
        return masked_mean(-logsigmoid(signs_B1 * (scores_BK - others_BK)), targets.has_unit_BK, dim=1)


def _unit_numbers_BT(rows: ScoredRows) -> Tensor:  # noqa: N802
    """Return the number of each token's unit, from 0 and without gaps; unscored tokens have that of the token before.

    Raises:
        ValueError: the rows have no units.
    """
    if rows.unit_ids_BT is None:
        raise ValueError(
            "prm.loss = 'dpo_units' needs the step or turn of each token: set prm.granularity to one"
        )
    ids_BT = torch.where(rows.scored_mask_BT.bool(), rows.unit_ids_BT, -1).cummax(dim=1).values
    begins_BT = torch.nn.functional.pad(ids_BT[:, 1:] != ids_BT[:, :-1], (1, 0), value=False)
    return begins_BT.cumsum(dim=1)


def _scores_after_units_BK(rows: ScoredRows, numbers_BT: Tensor, num_units: int) -> Tensor:  # noqa: N802
    """Return beta * sum of q up to the end of each unit, and of all of them behind the last one."""
    units_BK = torch.arange(num_units, device=numbers_BT.device).expand(rows.num_rows, -1)
    ends_BK = torch.searchsorted(numbers_BT.contiguous(), units_BK.contiguous(), right=True)
    summed_BL = torch.nn.functional.pad(rows.log_ratio_BT.cumsum(dim=1), (1, 0))
    return rows.beta * summed_BL.gather(1, ends_BK)
