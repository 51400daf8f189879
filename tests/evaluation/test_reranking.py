import math

import pytest

from megatron_prime.evaluation.reranking import best_of_n, pair_accuracy, sigmoid, vote


def test_the_best_is_the_first_of_the_highest():
    assert best_of_n([1.0, 3.0, 3.0, -1.0]) == 1
    assert best_of_n([-2.0]) == 0


@pytest.mark.parametrize(
    ("answers", "weights", "place"),
    [
        (["a", "b", "b"], [1, 1, 1], 1),
        (["a", "b", "b"], [3, 1, 1], 0),
        (["a", "b"], [1, 1], 0),
        ([None, "b", "a"], [9, 1, 1], 1),
        ([None, None], [1, 1], None),
        (["c", "a", "a"], [1, 0.3, 0.6], 0),
    ],
)
def test_votes(answers, weights, place):
    assert vote(answers, weights) == place


def test_pairs_are_counted_by_hand():
    # right-wrong pairs: (2, 1) right, (2, 2) a draw, (0, 1) wrong, (0, 2) wrong
    share, count = pair_accuracy([2.0, 1.0, 0.0, 2.0, 5.0], [1.0, 0.0, 1.0, 0.0, math.nan])
    assert (share, count) == (1.5 / 4, 4)
    assert pair_accuracy([1.0, 2.0], [0.5, 1.0]) == (1.0, 1)
    share, count = pair_accuracy([1.0, 2.0], [1.0, 1.0])
    assert math.isnan(share) and count == 0


def test_sigmoid_neither_overflows_nor_differs():
    for score in (-800.0, -3.0, 0.0, 2.5, 800.0):
        wanted = 1.0 if score == 800 else 0.0 if score == -800 else 1 / (1 + math.exp(-score))
        assert sigmoid(score) == pytest.approx(wanted)
