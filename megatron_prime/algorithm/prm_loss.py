"""Losses that train the PRM on outcome labels, their pair targets, and its online metrics.

A score is the logit beta * sum_t q_t of `implicit_reward.sequence_scores_B`. Losses are weighted sums over
responses: the weights come from the whole minibatch (1 / its number of responses for a mean), so the sum over
any split of it into microbatches is the same loss.

Shapes: B responses, P groups, G slots of the largest group.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from megatron_prime.algorithm.checks import check_choice, check_outcomes, check_rows
from megatron_prime.algorithm.groups import group_table
from megatron_prime.algorithm.tensor_ops import as_float

PRMLossKind = Literal["ce", "dpo", "bon_acc", "bon_rm"]


def prm_loss(
    scores_B: Tensor,
    labels_B: Tensor,
    kind: PRMLossKind,
    weights_B: Tensor,
    other_scores_B: Tensor | None = None,
    pair_weights_B: Tensor | None = None,
) -> Tensor:
    """Return the scalar sum_i weights_i * loss_i, differentiable in scores_B.

    ce: -label * log sigmoid(score) - (1 - label) * log sigmoid(-score), from logits (never a sigmoid first).
    dpo: -log sigmoid(sign * (score - other_score)), sign = +1 where label > 0 and -1 elsewhere.
    bon_acc, bon_rm: the dpo loss times pair_weights.

    Args:
        scores_B: logits of the rows of this microbatch.
        labels_B: outcome rewards in [0, 1]; fractions are soft labels for ce, and correct (> 0) for the
            others.
        kind: see above.
        weights_B: weight of each response, from the global minibatch.
        other_scores_B: needed by all but ce; from `prm_pair_targets` on the whole groups before the update.
        pair_weights_B: needed by bon_acc and bon_rm; from the same call.

    Raises:
        ValueError: an unknown kind, a missing argument, shapes differ, labels outside [0, 1] or NaN.
    """
    check_choice("kind", kind, get_args(PRMLossKind))
    check_outcomes(labels_B)
    scores_B = as_float(scores_B)
    check_rows(
        scores_B.numel(),
        scores_B=scores_B,
        labels_B=labels_B,
        weights_B=weights_B,
        other_scores_B=other_scores_B,
        pair_weights_B=pair_weights_B,
    )
    weights_B = weights_B.detach().to(scores_B.dtype)
    if kind == "ce":
        labels_B = labels_B.to(scores_B.dtype)
        return (weights_B * binary_cross_entropy_with_logits(scores_B, labels_B, reduction="none")).sum()
    if other_scores_B is None:
        raise ValueError(f"PRM loss {kind!r} needs other_scores_B from prm_pair_targets")
    losses_B = -logsigmoid(_signs(labels_B).to(scores_B.dtype) * (scores_B - other_scores_B.detach()))
    if kind != "dpo":
        if pair_weights_B is None:
            raise ValueError(f"PRM loss {kind!r} needs pair_weights_B from prm_pair_targets")
        losses_B = losses_B * pair_weights_B.detach()
    return (weights_B * losses_B).sum()


@torch.no_grad()
def prm_pair_targets(
    scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor, kind: PRMLossKind
) -> tuple[Tensor, Tensor]:
    """Return (other_scores_B, pair_weights_B), detached, for the losses that compare within a group.

    Call it once on whole groups, with the scores of one PRM before the update: scores taken between minibatch
    updates would come from different PRMs.

    other_scores_B: mean score of the group's members with a strictly lower label where label > 0, with a
    strictly higher label elsewhere; 0 where there are none. pair_weights_B: n * (fraction of the group <=
    own)^(n - 1) by score for bon_rm and by label for bon_acc, n the group's size; 1 for dpo.

    Raises:
        ValueError: kind is ce (which has no pairs) or unknown, shapes differ, labels outside [0, 1] or NaN.
    """
    check_choice("kind", kind, get_args(PRMLossKind)[1:])
    check_outcomes(labels_B)
    scores_B = as_float(scores_B).detach()
    table = group_table(group_ids_B)
    scores_PG, labels_PG = table.gather(scores_B), table.gather(labels_B)
    # Axis 1 is the row that asks, axis 2 the member it looks at.
    own_PG1, member_P1G = labels_PG[:, :, None], labels_PG[:, None, :]
    is_other_PGG = (
        torch.where(own_PG1 > 0, member_P1G < own_PG1, member_P1G > own_PG1) & table.filled[:, None, :]
    )
    num_others_PG = is_other_PGG.sum(dim=2)
    sum_PG = torch.where(is_other_PGG, scores_PG[:, None, :].double(), 0.0).sum(dim=2)
    other_scores_B = table.scatter(sum_PG / num_others_PG.clamp(min=1)).to(scores_B.dtype)
    if kind == "dpo":
        return other_scores_B, torch.ones_like(scores_B)
    ranked_PG = scores_PG if kind == "bon_rm" else labels_PG
    not_above_PGG = (ranked_PG[:, None, :] <= ranked_PG[:, :, None]) & table.filled[:, None, :]
    size_P1 = table.sizes[:, None].double()
    weights_PG = size_P1 * (not_above_PGG.sum(dim=2) / size_P1) ** (size_P1 - 1)
    return other_scores_B, table.scatter(weights_PG).to(scores_B.dtype)


@torch.no_grad()
def prm_metrics(scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> dict[str, float]:
    """Return the PRM's quality on the global batch, without human labels.

    ce: mean cross-entropy in nats (0.693 at chance). sign_accuracy: share of responses whose score has the
    sign of label - 0.5, among labels other than 0.5. pair_accuracy: share of the pairs within a group with
    different labels that the scores order rightly, pooled over groups. A score of 0 and equal scores count
    one half, so a PRM that equals its reference reads 0.5, not 0. num_pairs: pairs counted. score_mean: nats;
    the class-prior offset of CE shows here. NaN where there is nothing to count.

    Raises:
        ValueError: shapes differ, labels outside [0, 1] or NaN.
    """
    check_outcomes(labels_B)
    scores_B = as_float(scores_B).double()
    labels_B = labels_B.double()
    check_rows(scores_B.numel(), scores_B=scores_B, labels_B=labels_B, group_ids_B=group_ids_B)
    table = group_table(group_ids_B)
    scores_PG, labels_PG = table.gather(scores_B), table.gather(labels_B)
    score_gap_PGG = scores_PG[:, :, None] - scores_PG[:, None, :]
    # The left one of a pair is never an empty slot: those hold label 0, which is greater than none.
    is_pair_PGG = (labels_PG[:, :, None] > labels_PG[:, None, :]) & table.filled[:, None, :]
    signed_B = scores_B[labels_B != 0.5] * (labels_B[labels_B != 0.5] - 0.5).sign()
    return {
        "ce": float(binary_cross_entropy_with_logits(scores_B, labels_B)),
        "sign_accuracy": float(_right_share(signed_B)),
        "pair_accuracy": float(_right_share(score_gap_PGG[is_pair_PGG])),
        "num_pairs": float(is_pair_PGG.sum()),
        "score_mean": float(scores_B.mean()),
    }


def _right_share(margins: Tensor) -> Tensor:
    return (margins.sign() / 2 + 0.5).mean()


def _signs(labels_B: Tensor) -> Tensor:
    return (labels_B > 0).float() * 2 - 1
