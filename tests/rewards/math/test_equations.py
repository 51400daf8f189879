import pytest

from megatron_prime.rewards.math.equations import (
    difference_of,
    names_a_quantity,
    ratio_terms,
    sides_of,
    strip_assignment,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 5", ("x", "5")),
        ("5 = x", ("x", "5")),
        ("f(x)=x+1", ("f(x)", "x+1")),
        ("(x,y)=(1,2)", ("(x,y)", "(1,2)")),
        (r"\theta=1", (r"\theta", "1")),
        ("x=y=2", ("", "x=y=2")),
        ("2x=4", ("", "2x=4")),
        ("x=", ("", "x=")),
        ("5", ("", "5")),
    ],
)
def test_assignments_are_stripped(text, expected):
    assert strip_assignment(text) == expected


def test_equations_are_split_into_sides():
    assert sides_of("a = b=c") == ["a", "b", "c"]
    assert sides_of(r"\sum_{k=1}^{3} k") == [r"\sum_{k=1}^{3} k"]
    assert difference_of(["x", "1"]) == "(x)-(1)"


@pytest.mark.parametrize(
    ("side", "is_name"), [("AB", True), ("P(A)", True), (r"\angle ABC", True), ("x+y", False), ("2x", False)]
)
def test_left_sides_that_only_name_a_quantity_are_recognized(side, is_name):
    assert names_a_quantity(side) == is_name


@pytest.mark.parametrize(
    ("text", "terms"), [("1:2 : 3", ["1", "2", "3"]), ("5", ["5"]), (":3", [":3"]), ("{1:2}", ["{1:2}"])]
)
def test_ratios_are_split_into_terms(text, terms):
    assert ratio_terms(text) == terms
