"""Finding the first wrong step of a solution, scored as ProcessBench does (arXiv 2412.06559).

A label is the place of the first wrong step, from 0, or -1 when all steps are right. The prediction is the first step
whose score lies below a threshold. The score of a set is the harmonic mean of two accuracies: on solutions with an
error (the very step must be named) and on those without.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CORRECT = -1


@dataclass(frozen=True, slots=True)
class FirstErrorAccuracy:
    """Accuracies of a set of solutions; NaN where it has none of the kind."""

    erroneous: float
    """Share of solutions with an error whose first one was named."""
    correct: float
    """Share of solutions without an error that were passed."""

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; 0 where both are 0."""
        total = self.erroneous + self.correct
        return 2 * self.erroneous * self.correct / total if total else 0.0


def first_error(scores: Sequence[float], threshold: float) -> int:
    """Place of the first score below the threshold, or CORRECT."""
    return next((place for place, score in enumerate(scores) if score < threshold), CORRECT)


def first_error_accuracy(
    scores: Sequence[Sequence[float]], labels: Sequence[int], threshold: float
) -> FirstErrorAccuracy:
    """Accuracies of the predictions at one threshold, in the unit of the scores."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for scores_of_steps, label in zip(scores, labels, strict=True):
        hits[label == CORRECT].append(first_error(scores_of_steps, threshold) == label)

    def share(found: list[bool]) -> float:
        return sum(found) / len(found) if found else math.nan

    return FirstErrorAccuracy(erroneous=share(hits[False]), correct=share(hits[True]))


def best_threshold(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The threshold of the highest F1 on these solutions; of equal ones, the middle of the widest range.

    Predictions change only where the threshold passes the least score so far of some solution, so all there is to
    choose from lies between two neighbours among those. One sweep over them keeps both counts: n log n for n steps.

    Raises:
        ValueError: there are no solutions of one of the two kinds, so that no F1 exists.
    """
    num_wrong = sum(label != CORRECT for label in labels)
    num_right = len(labels) - num_wrong
    if not num_wrong or not num_right:
        raise ValueError(
            f"{num_wrong} solutions with an error and {num_right} without: choosing a threshold takes both kinds"
        )
    events = sorted(_changes(scores, labels))
    # Below every score nothing is flagged: all right solutions are passed, no error is found.
    found, passed = 0, num_right
    best_f1, best_width, best = -1.0, 0.0, 0.0
    for place, (value, found_change, passed_change) in enumerate(events):
        found, passed = found + found_change, passed + passed_change
        upper = events[place + 1][0] if place + 1 < len(events) else value + 2.0
        if upper == value:
            continue  # the thresholds between equal scores do not exist
        f1 = FirstErrorAccuracy(found / num_wrong, passed / num_right).f1
        if (f1, upper - value) > (best_f1, best_width):
            best_f1, best_width, best = f1, upper - value, (value + upper) / 2
    return best


def _changes(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> list[tuple[float, int, int]]:
    """(value, change of errors found, change of right solutions passed) as the threshold rises above the value."""
    changes = []
    for scores_of_steps, label in zip(scores, labels, strict=True):
        least = math.inf
        minima = []  # (place, score) of each new least score: what the prediction can be
        for place, score in enumerate(scores_of_steps):
            if score < least:
                least = score
                minima.append((place, score))
        if label == CORRECT:
            changes.append((minima[-1][1], 0, -1))
            continue
        for number, (place, score) in enumerate(minima):
            if place == label:
                changes.append((score, 1, 0))
                if number:
                    # Above the least score before it, an earlier step is named instead.
                    changes.append((minima[number - 1][1], -1, 0))
    return changes
