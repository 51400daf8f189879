import math

import pytest

from megatron_prime.evaluation.reranking import answer_key, best_of_n, pair_accuracy, sigmoid, vote


def test_best_of_n_returns_the_first_of_the_highest_scores():
    assert best_of_n([1.0, 3.0, 3.0, -1.0]) == 1
    assert best_of_n([-2.0]) == 0


@pytest.mark.parametrize(
    ("answers", "weights", "chosen"),
    [
        (["a", "b", "b"], [1, 1, 1], 1),
        (["a", "b", "b"], [3, 1, 1], 0),
        (["a", "b"], [1, 1], 0),
        ([None, "b", "a"], [9, 1, 1], 1),
        ([None, None], [1, 1], None),
        (["c", "a", "a"], [1, 0.3, 0.6], 0),
    ],
)
def test_votes(answers, weights, chosen):
    assert vote(answers, weights) == chosen


def test_pair_accuracy_matches_a_count_by_hand():
    # (correct, wrong) pairs: (2, 1) in order, (2, 2) a tie, (0, 1) and (0, 2) out of order.
    share, count = pair_accuracy([2.0, 1.0, 0.0, 2.0, 5.0], [1.0, 0.0, 1.0, 0.0, math.nan])
    assert (share, count) == (1.5 / 4, 4)
    assert pair_accuracy([1.0, 2.0], [0.5, 1.0]) == (1.0, 1)
    share, count = pair_accuracy([1.0, 2.0], [1.0, 1.0])
    assert math.isnan(share) and count == 0


def test_sigmoid_is_exact_and_does_not_overflow():
    for score in (-800.0, -3.0, 0.0, 2.5, 800.0):
        wanted = 1.0 if score == 800 else 0.0 if score == -800 else 1 / (1 + math.exp(-score))
        assert sigmoid(score) == pytest.approx(wanted)


def test_answers_are_the_last_box_or_the_last_line():
    assert answer_key("so \\boxed{ 1 2 }.\nend") == "12"
    assert answer_key("first\nlast line ") == "lastline"
    assert answer_key(" \n") is None
