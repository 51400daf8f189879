"""The loss with geometric means over responses, against loops over tokens in float64."""

import pytest

from tests.algorithm import corrections


def test_loss_gradient_and_outsiders_are_those_of_the_loops():
    corrections.check_against_loops("geometric", high=1.1)


def test_every_token_has_the_mean_of_its_response_whatever_the_length():
    assert corrections.log_ratios("geometric", [[0.5, -1.0, 2.0], [0.25] * 2]) == [[0.5] * 3, [0.25] * 2]


def test_a_response_that_has_drifted_as_a_whole_is_left_out():
    weights, outside = corrections.weights(
        "geometric", [[0.01] * 9, [0.5, -0.5]], low=0.999, high=1.001, outside="mask"
    )
    assert weights[0] == [0.0] * 9
    assert outside == [[True] * 9, [False] * 2]
    assert weights[1] == pytest.approx([1.0] * 2)
