"""The loss with weights of tokens, against loops over tokens in float64."""

from tests.algorithm import corrections


def test_loss_gradient_and_outsiders_are_those_of_the_loops():
    corrections.check_against_loops("token", high=1.3)


def test_each_token_has_its_own_ratio():
    assert corrections.log_ratios("token", [[0.5, -1.0, 2.0]]) == [[0.5, -1.0, 2.0]]
