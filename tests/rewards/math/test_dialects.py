import time

import pytest

from megatron_prime.rewards.math.dialects import (
    canonical_phrase,
    joined_thousands,
    listed_rows,
    rewritten,
    round_brackets,
)
from tests.support import deadlines


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("6*pi", r"6*\pi "),
        ("pie", "pie"),
        ("sqrt(1+sqrt(2))", r"\sqrt{1+\sqrt{2}}"),
        ("sqrt(2", "sqrt(2"),
        ("exp(-x)", "e^{-x}"),
        (r"\text{pi}", r"\text{pi}"),
        (r"402\ \checkmark", "402"),
        (r"\begin{aligned}x&=4+1\\&=5\end{aligned}", "x=4+1=5"),
        (r"\begin{cases}x=1\\y=2\end{cases}", "x=1, y=2"),
        (r"\begin{cases}x&x>1\\2&x<1\end{cases}", r"\begin{cases}x&x>1\\2&x<1\end{cases}"),
        ("(101)_2", "101_2"),
        (r"45,\!360", "45360"),
    ],
)
def test_habits_of_writing_become_latex(text, result):
    assert rewritten(text) == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1,000", "1000"),
        ("x=1 000", "x=1000"),
        (r"1,234\pi", r"1234\pi"),
        ("1, 000", "1, 000"),
        ("1,00", "1,00"),
    ],
)
def test_thousands_are_joined(text, result):
    assert joined_thousands(text) == result


def test_brackets_and_rows():
    assert round_brackets(r"]0;1[\cup ]2,3]") == r"(0,1)\cup (2,3]"
    assert round_brackets("[0,1]") == "[0,1]"
    assert listed_rows("[[1,2],[3,4]]") == r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
    assert listed_rows("[[1,2],[3]]") == "[[1,2],[3]]"


@pytest.mark.parametrize(
    ("phrase", "result"),
    [
        ("there are no real roots", "no real root"),
        ("the series converges absolutely", "converges absolutely"),
        ("the series does not converge", None),
        ("every prime number", "all primes"),
        ("prime number", None),
        ("3rd of march", "march 3"),
        ("positive integers", r"\mathbb{Z}^{+}"),
    ],
)
def test_sentences_have_one_form(phrase, result):
    assert canonical_phrase(phrase) == result


def test_rewriting_takes_linear_time():
    start = time.process_time()
    for text in (
        "sqrt(" * 400,
        r"\begin{cases}" * 150,
        r"\quad " * 330,
        "=" * 2000,
        "1,000" * 400,
        "(" * 2000,
    ):
        rewritten(text)
        joined_thousands(text)
        round_brackets(text)
    assert time.process_time() - start < deadlines.seconds(1.0)
