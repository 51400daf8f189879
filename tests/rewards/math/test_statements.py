import pytest

from megatron_prime.rewards.math.statements import (
    both_signs_equal,
    cases_equal,
    chains_equal,
    split_name,
    without_approximation,
)


@pytest.mark.parametrize(
    ("gold", "given", "verdict"),
    [
        ("a<b", "b>a", True),
        ("a<b", "b<a", None),
        ("a=b=c", "c=a=b", True),
        ("a=b", "a=c", None),
        (r"a\ne b", r"b\ne a", True),
        ("5", "5", None),
    ],
)
def test_chains_are_read_from_either_side(gold, given, verdict):
    assert chains_equal(gold, given) is verdict


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (r"6\sqrt{5}\approx 13.416", r"6\sqrt{5}"),
        (r"6\sqrt{5}\approx 13.5", r"6\sqrt{5}\approx 13.5"),
        (r"\approx 13.416", r"\approx 13.416"),
        (r"5\approx 6", r"5\approx 6"),
    ],
)
def test_an_approximation_behind_a_value_must_be_its_rounding(text, result):
    assert without_approximation(text) == result


def test_both_signs_are_one_equation():
    assert both_signs_equal("y^2=4x", r"y=\pm 2\sqrt{x}") is True
    assert both_signs_equal("y^2=4x", r"y=\pm 2x") is False
    assert both_signs_equal("y^2=4x", r"y=2\sqrt{x}") is None


def test_functions_by_cases():
    gold, swapped = (
        rf"\begin{{cases}}{rows}\end{{cases}}" for rows in (r"1,&x>0\\2,&x<0", r"2&\text{if }x<0\\1&x>0")
    )
    assert cases_equal(gold, swapped, str.__eq__) is True
    assert cases_equal(gold, swapped.replace("2", "3"), str.__eq__) is False
    assert cases_equal("x", gold, str.__eq__) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("P(3,-4)", ("P", "(3,-4)")),
        (r"S=\{1,2\}", ("S", r"\{1,2\}")),
        ("P(7)", ("", "P(7)")),
        ("f(1,2)", ("", "f(1,2)")),
    ],
)
def test_names_of_points_and_sets(text, parts):
    assert split_name(text) == parts
