"""The loss with weights of whole responses, against loops over tokens in float64."""

import pytest

from tests.algorithm import corrections


def test_loss_gradient_and_outsiders_are_those_of_the_loops():
    corrections.check_against_loops("sequence", high=1.3)


def test_every_token_has_the_product_of_its_response():
    assert corrections.log_ratios("sequence", [[0.5, -1.0, 2.0], [0.25]]) == [[1.5] * 3, [0.25]]


def test_long_responses_neither_overflow_nor_vanish():
    """The ratio of 300 tokens that differ by a nat each is e^300."""
    (weights,), _ = corrections.weights("sequence", [[1.0] * 300], high=5.0)
    assert weights == pytest.approx([5.0] * 300)
    (weights,), _ = corrections.weights("sequence", [[-1.0] * 300], high=5.0)
    assert all(0 < weight < 1e-6 for weight in weights)
