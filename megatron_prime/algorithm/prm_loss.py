"""The loss that trains the PRM on outcome labels, and the PRM's online metrics.

A score is the logit beta * sum_t q_t of `implicit_reward.sequence_scores_B`; an objective sees the q_t too. Losses are
weighted sums over responses: the weights come from the whole minibatch (1 / its number of responses for a mean), so the
sum over any split of it into microbatches is the same loss.

Shapes: B responses, T response tokens (right padded), L = T + 1 lengths of a prefix.
"""

from dataclasses import replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from megatron_prime.algorithm.checks import check_outcomes, check_rows
from megatron_prime.algorithm.groups import pair_accuracy, share_positive
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows
from megatron_prime.algorithm.registry import PRM_OBJECTIVES, Requirements
from megatron_prime.algorithm.tensor_ops import as_float
from megatron_prime.config.tables.prm import PRMConfig


class PRMObjective(Protocol):
    """A training objective of the PRM; constructed with the [prm] section.

    Built-in ones are the modules of `algorithm.prm_objectives`. Labels are outcome rewards in [0, 1].
    """

    requires: ClassVar[Requirements]
    """Settings that the objective requires elsewhere, and whether `targets` needs scores from before the update."""

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return what the losses need of the whole batch before the update; None if responses are independent.

        Args:
            rows: the whole batch as scored before the update, detached; None unless `requires.prior_scores`, because
                it costs a forward pass.
            labels_B: outcome rewards of the whole batch.
            group_ids_B: int; equal for responses to one prompt, in any order, groups of any size.
        """
        ...

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the loss of each response, [B], differentiable in the log-ratio of `rows` alone.

        The rows are any part of a minibatch, and `targets` are of the same rows.
        """
        ...

    def prefix_logits_BL(  # noqa: N802
        self, log_ratio_BT: Tensor, scored_mask_BT: Tensor, prior_logits_B: Tensor
    ) -> Tensor:
        """Return the logit that a response which begins with its first t tokens ends up right, t = 0..T, [B, T + 1].

        It stays the same on tokens that are not scored. A PRM that equals its reference changes no logit along a
        response. `SummedPrefixes` has the one of the paper's objective.

        Args:
            log_ratio_BT: q_t in nats, 0 outside the scored tokens.
            scored_mask_BT: bool, the scored tokens.
            prior_logits_B: logit that a response is right before any of it is read, `groups.prior_logits_B`.
        """
        ...


def prm_objective(config: PRMConfig) -> PRMObjective:
    """Build the objective that `prm.loss` names. Raises ValueError if there is none."""
    return PRM_OBJECTIVES.load(config.loss)(config)


def prm_loss(
    rows: ScoredRows,
    labels_B: Tensor,
    weights_B: Tensor,
    config: PRMConfig,
    targets: RowTargets | None = None,
    *,
    are_labels_checked: bool = False,
) -> Tensor:
    """Return the scalar sum_i weights_i * loss_i of the objective that `prm.loss` names.

    Args:
        rows: the rows of this microbatch.
        labels_B: outcome rewards in [0, 1]; fractions are soft labels for cross-entropies, and correct (> 0) for the
            pairwise objectives.
        weights_B: weight of each response, from the global minibatch.
        config: the [prm] section.
        targets: rows of `prm_targets` of the whole batch.
        are_labels_checked: leave out the check of the labels' values, which waits for a GPU; `check_outcomes` was
            called on all of them before.

    Raises:
        ValueError: targets are missing, shapes differ, labels outside [0, 1] or NaN.
    """
    if not are_labels_checked:
        check_outcomes(labels_B)
    check_rows(rows.num_rows, labels_B=labels_B, weights_B=weights_B)
    if targets is not None:
        targets.check_rows(rows.num_rows)
    objective = prm_objective(config)
    losses_B = objective.losses_B(rows, labels_B, targets)
    return (weights_B.detach().to(losses_B.dtype) * losses_B).sum()


@torch.no_grad()
def prm_targets(
    rows: ScoredRows | None,
    labels_B: Tensor,
    group_ids_B: Tensor,
    config: PRMConfig,
    *,
    are_labels_checked: bool = False,
) -> RowTargets | None:
    """Return the objective's targets, detached; None for ce, which has none.

    Call it once on whole groups before the update, with rows scored by one PRM if the objective requires them.

    Raises:
        ValueError: shapes differ, labels outside [0, 1] or NaN.
    """
    if not are_labels_checked:
        check_outcomes(labels_B)
    objective = prm_objective(config)
    if rows is not None:
        check_rows(rows.num_rows, labels_B=labels_B, group_ids_B=group_ids_B)
        rows = replace(rows, log_ratio_BT=rows.log_ratio_BT.detach())
    return objective.targets(rows, labels_B, group_ids_B)


@torch.no_grad()
def prm_metrics(scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> dict[str, float]:
    """Return the PRM's quality on the global batch, without human labels.

    ce: mean cross-entropy in nats (0.693 at chance). sign_accuracy: share of responses whose score has the
    sign of label - 0.5, among labels other than 0.5. pair_accuracy: share of the pairs within a group with
    different labels that the scores order correctly, pooled over groups. A score of 0 and equal scores count
    one half, so a PRM that equals its reference reads 0.5, not 0. num_pairs: pairs counted. score_mean: nats;
    the class-prior offset of CE shows here. NaN where there is nothing to count.

    Raises:
        ValueError: shapes differ, labels outside [0, 1] or NaN.
    """
    check_outcomes(labels_B)
    scores_B = as_float(scores_B).double()
    labels_B = labels_B.double()
    check_rows(scores_B.numel(), scores_B=scores_B, labels_B=labels_B, group_ids_B=group_ids_B)
    accuracy, num_pairs = pair_accuracy(scores_B, labels_B, group_ids_B)
    signed_B = scores_B[labels_B != 0.5] * (labels_B[labels_B != 0.5] - 0.5).sign()
    return {
        "ce": float(binary_cross_entropy_with_logits(scores_B, labels_B)),
        "sign_accuracy": float(share_positive(signed_B)),
        "pair_accuracy": accuracy,
        "num_pairs": float(num_pairs),
        "score_mean": float(scores_B.mean()),
    }
