import pytest

from megatron_prime.rewards.math.equations import (
    curves_equal,
    names_a_quantity,
    ratio_terms,
    regions_equal,
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


@pytest.mark.parametrize(
    ("side", "is_name"),
    [
        ("x", True), ("AB", True), ("P(A)", True), (r"\angle ABC", True), ("f(2)", True), ("f'(x)", True),
        ("a_{10}", True), ("m+n", True), (r"\text{Area}", True), ("x+y", False), ("2x", False), ("x^2", False),
        (r"\sin x", False), ("x(x+1)", False), ("|x|", False), (r"\frac{x}{2}", False), ("xy", False), ("-x", False),
        ("5", False), ("e^x", False),
    ],
)  # fmt: skip
def test_left_sides_that_only_name_a_quantity_are_recognized(side, is_name):
    assert names_a_quantity(side) == is_name


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("1:2 : 3", ["1", "2", "3"]),
        (r"5\text{ to }7", ["5", "7"]),
        ("5", ["5"]),
        (":3", [":3"]),
        ("{1:2}", ["{1:2}"]),
    ],
)
def test_ratios_are_split_into_terms(text, terms):
    assert ratio_terms(text) == terms


@pytest.mark.parametrize(
    ("gold", "given", "equal"),
    [
        (["y", "2x+1"], ["4x-2y", "-2"], True),
        (["xy", "1"], ["y", r"\frac{1}{x}"], True),
        ([r"\sqrt{2}x+y", "1"], ["2x+\\sqrt{2}y", r"\sqrt{2}"], True),
        (["y", "x"], ["y^2", "x^2"], False),
        (["xy", "1"], ["x^2y", "x"], False),
        (["x+y", "0"], ["0", "0"], False),
        (["x", "3"], ["y", "3"], False),
        (["x^2+y^2", "25"], ["y", r"\sqrt{25-x^2}"], False),
    ],
)
def test_curves_are_equal_up_to_a_factor(gold, given, equal):
    assert curves_equal(gold, given) is equal


@pytest.mark.parametrize(
    ("given", "equal"),
    [("2x+2y>2", True), ("-x-y<-1", True), ("2x+2y<2", False), (r"2x+2y\ge 2", False), ("x+y=1", None)],
)
def test_regions_are_equal_up_to_a_positive_factor(given, equal):
    assert regions_equal("x+y>1", given) is equal
