"""Best-of-N, voting and pair accuracy: choosing among several responses to a problem without labels."""

import math
from collections.abc import Hashable, Sequence

from megatron_prime.rewards.math.boxed import last_boxed


def best_of_n(scores: Sequence[float]) -> int:
    """Return the index of the highest score; the first one on a tie."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> int | None:
    """Return the index of the first response with the answer that has the largest total weight.

    A response without an answer (None) does not vote. On a tie the answer that occurs first wins. Returns None if no
    response has an answer.
    """
    totals: dict[Hashable, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals.setdefault(answer, []).append(weight)
    if not totals:
        return None
    # Dictionaries keep insertion order and max() returns the first maximum, which resolves ties.
    winner = max(totals, key=lambda answer: math.fsum(totals[answer]))
    return list(answers).index(winner)


def pair_accuracy(scores: Sequence[float], outcomes: Sequence[float]) -> tuple[float, int]:
    """Return the fraction of pairs with different outcomes that the scores order correctly, and the number of pairs.

    A pair with equal scores counts one half. A response whose outcome is NaN is in no pair. The fraction is NaN without
    pairs.
    """
    # A positive margin means that the response with the better outcome has the higher score.
    margins = [
        left - right
        for left, better in zip(scores, outcomes, strict=True)
        for right, worse in zip(scores, outcomes, strict=True)
        if better > worse
    ]
    num_correct = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    return (num_correct / len(margins) if margins else math.nan), len(margins)


def sigmoid(score: float) -> float:
    """Return 1 / (1 + exp(-score)), without overflow for large negative scores."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))


def answer_key(text: str) -> str | None:
    """Return the answer of a response for voting: its last box, else its last line, without white space.

    Returns None if that is empty. Equal answers in different notation count as different: comparing them would take
    one verifier call per pair of responses.
    """
    answer = last_boxed(text)
    if answer is None:
        lines = text.strip().splitlines()
        answer = lines[-1] if lines else ""
    return "".join(answer.split()) or None
