# ruff: noqa: RUF001 - the tests are about look-alike characters
import time

import pytest

from megatron_prime.rewards.exact_match import ExactMatch
from tests.support import deadlines


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
        ("x" * 100 + "7", "7", 0.0),
        ("x" * 1000 + " 7", "7", 1.0),
        ("u\u0308\u0304" * 50, "\u01d6" * 50, 1.0),
        ("\u1112\u1161\u11ab" * 50, "\ud55c" * 50, 1.0),
    ],
)
def test_the_response_must_end_with_the_answer(response, answer, reward):
    assert ExactMatch().verify(response, answer) == reward


@pytest.mark.parametrize(
    "text",
    ["a" + "\u0315\u0300" * 100_000, "\ufdfa" * 200_000, "7 " * 200_000, " " * 400_000],
    ids=["marks", "ligatures", "words", "blank"],
)
def test_no_response_holds_up_the_run(text):
    start = time.process_time()
    ExactMatch().verify(text, "x = 7")
    assert time.process_time() - start < deadlines.seconds(1)


def test_a_blank_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="blank"):
        ExactMatch().verify("anything", " ")
