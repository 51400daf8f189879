"""ProcessBench's score for finding the first wrong step of a solution (arXiv 2412.06559).

A label is the index of the first wrong step, from 0, or -1 if all steps are correct. The prediction is the first step
whose score is below a threshold. The score of a set of solutions is the F1 of two accuracies: the one on erroneous
solutions, where the exact step must be predicted, and the one on correct solutions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CORRECT = -1
"""Label of a solution without errors."""


@dataclass(frozen=True, slots=True)
class FirstErrorAccuracy:
    """Accuracies on a set of solutions; NaN for a kind that the set does not contain."""

    erroneous: float
    """Fraction of erroneous solutions whose first wrong step was predicted."""
    correct: float
    """Fraction of correct solutions for which no error was predicted."""

    @property
    def f1(self) -> float:
        """Harmonic mean of both accuracies; 0 if both are 0."""
        total = self.erroneous + self.correct
        return 2 * self.erroneous * self.correct / total if total else 0.0


def first_error(scores: Sequence[float], threshold: float) -> int:
    """Return the index of the first score below the threshold, or CORRECT."""
    return next((step for step, score in enumerate(scores) if score < threshold), CORRECT)


def first_error_accuracy(
    scores: Sequence[Sequence[float]], labels: Sequence[int], threshold: float
) -> FirstErrorAccuracy:
    """Return the accuracies of the predictions at one threshold, given in the unit of the scores."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for step_scores, label in zip(scores, labels, strict=True):
        hits[label == CORRECT].append(first_error(step_scores, threshold) == label)

    def fraction(found: list[bool]) -> float:
        return sum(found) / len(found) if found else math.nan

    return FirstErrorAccuracy(erroneous=fraction(hits[False]), correct=fraction(hits[True]))


def best_threshold(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Return the threshold with the highest F1 on these solutions; of equal ones, the middle of the widest interval.

    The predictions change only where the threshold crosses the running minimum of some solution's scores, so the F1 is
    constant between two neighbouring minima. One sweep over the sorted minima updates both counts, in O(n log n) for n
    steps.

    Raises:
        ValueError: the F1 is undefined because there are no erroneous or no correct solutions.
    """
    num_wrong = sum(label != CORRECT for label in labels)
    num_right = len(labels) - num_wrong
    if not num_wrong or not num_right:
        raise ValueError(
            f"{num_wrong} solutions with an error and {num_right} without: choosing a threshold takes both kinds"
        )
    events = sorted(_changes(scores, labels))
    # The sweep starts with a threshold below every score, where every solution is predicted to be correct.
    found, passed = 0, num_right
    best_f1, best_width, best = -1.0, 0.0, 0.0
    for index, (value, found_change, passed_change) in enumerate(events):
        found, passed = found + found_change, passed + passed_change
        # Above the last change the interval is unbounded; the threshold is then placed 1 above it.
        upper = events[index + 1][0] if index + 1 < len(events) else value + 2.0
        if upper == value:
            continue  # There is no threshold between equal scores.
        f1 = FirstErrorAccuracy(found / num_wrong, passed / num_right).f1
        if (f1, upper - value) > (best_f1, best_width):
            best_f1, best_width, best = f1, upper - value, (value + upper) / 2
    return best


def _changes(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> list[tuple[float, int, int]]:
    """Return (value, change of errors found, change of correct solutions passed) as the threshold rises above value."""
    changes = []
    for step_scores, label in zip(scores, labels, strict=True):
        least = math.inf
        minima = []  # Only a step with a new running minimum can be predicted, at some threshold.
        for step, score in enumerate(step_scores):
            if score < least:
                least = score
                minima.append((step, score))
        if label == CORRECT:
            changes.append((minima[-1][1], 0, -1))
            continue
        for number, (step, score) in enumerate(minima):
            if step == label:
                changes.append((score, 1, 0))
                if number:
                    # Above the previous running minimum, an earlier step is predicted instead.
                    changes.append((minima[number - 1][1], -1, 0))
    return changes
