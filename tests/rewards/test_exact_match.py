# ruff: noqa: RUF001 - the tests are about look-alike characters
import pytest

from megatron_prime.rewards.exact_match import ExactMatch


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("3 5 7", "7", 1.0),
        ("3 5 7\n", " 7 ", 1.0),
        ("7", "7", 1.0),
        ("3 5 17", "7", 0.0),
        ("7 3", "7", 0.0),
        ("7.", "7", 0.0),
        ("", "7", 0.0),
        ("  \n", "7", 0.0),
        ("so\nx  =\t7\n", "x = 7", 1.0),
        ("= 7", "x = 7", 0.0),
        ("Yes", "yes", 0.0),
        ("３", "3", 1.0),
    ],
)
def test_the_response_must_end_with_the_answer(response, answer, reward):
    assert ExactMatch().verify(response, answer) == reward


def test_a_blank_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="blank"):
        ExactMatch().verify("anything", " ")
