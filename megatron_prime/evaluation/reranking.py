"""Choosing among several responses to a problem by their scores, without labels; and how often the choice is right."""

import math
from collections.abc import Hashable, Sequence


def best_of_n(scores: Sequence[float]) -> int:
    """Place of the highest score; of equal ones, the first."""
    return max(range(len(scores)), key=lambda place: (scores[place], -place))


def vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> int | None:
    """Place of the first response whose answer has the largest total weight.

    A response without an answer (None) has no vote. Of equal totals the answer that came first wins; None when nobody
    votes.
    """
    totals: dict[Hashable, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals.setdefault(answer, []).append(weight)
    if not totals:
        return None
    # Dictionaries keep their order and max takes the first: the answer that came first wins a draw.
    winner = max(totals, key=lambda answer: math.fsum(totals[answer]))
    return list(answers).index(winner)


def pair_accuracy(scores: Sequence[float], outcomes: Sequence[float]) -> tuple[float, int]:
    """Share of a group's pairs with different outcomes that the scores order rightly, and the number of pairs.

    Equal scores count one half; outcomes that are NaN make no pair. NaN without pairs.
    """
    margins = [
        left - right
        for left, better in zip(scores, outcomes, strict=True)
        for right, worse in zip(scores, outcomes, strict=True)
        if better > worse
    ]
    right = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    return (right / len(margins) if margins else math.nan), len(margins)


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))
