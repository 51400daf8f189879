"""The tuned threshold and its F1 against an exhaustive search."""

import math
import random

import pytest

from megatron_prime.evaluation.first_errors import (
    CORRECT,
    FirstErrorAccuracy,
    best_threshold,
    first_error,
    first_error_accuracy,
)


def test_the_first_step_below_the_threshold_is_predicted():
    assert first_error([3.0, 1.0, 0.5, 2.0], 1.0) == 2
    assert first_error([3.0, 1.0, 0.5, 2.0], 1.5) == 1
    assert first_error([3.0, 1.0], 1.0) == CORRECT


def test_f1_is_the_harmonic_mean():
    assert FirstErrorAccuracy(0.5, 1.0).f1 == pytest.approx(2 / 3)
    assert FirstErrorAccuracy(0.0, 0.0).f1 == 0.0
    assert FirstErrorAccuracy(0.0, 1.0).f1 == 0.0


def test_accuracies_match_values_computed_by_hand():
    scores = [[1.0, -1.0], [-1.0, -2.0], [1.0, 2.0], [0.5, -3.0]]
    accuracy = first_error_accuracy(scores, [1, 1, CORRECT, CORRECT], 0.0)
    assert (accuracy.erroneous, accuracy.correct) == (0.5, 0.5)
    assert math.isnan(first_error_accuracy(scores[:1], [1], 0.0).correct)


@pytest.mark.parametrize("seed", range(30))
def test_no_threshold_has_a_higher_f1_than_the_tuned_one(seed):
    draw = random.Random(seed)
    # Few distinct values, so that ties occur.
    scores = [[draw.randint(-4, 4) / 2 for _ in range(draw.randint(1, 6))] for _ in range(12)]
    labels = [draw.randint(-1, len(steps) - 1) for steps in scores]
    labels[:2] = [CORRECT, 0]
    found = first_error_accuracy(scores, labels, best_threshold(scores, labels)).f1
    grid = [index / 4 + 0.1 for index in range(-12, 13)] + [-1e9, 1e9]
    assert found == pytest.approx(max(first_error_accuracy(scores, labels, tau).f1 for tau in grid))


def test_the_threshold_is_the_middle_of_its_interval():
    assert best_threshold([[1.0, -3.0], [1.0, 1.0]], [1, CORRECT]) == pytest.approx(-1.0)


def test_tuning_without_correct_solutions_is_refused():
    with pytest.raises(ValueError, match="1 solutions with an error and 0 without"):
        best_threshold([[1.0]], [0])
