import pytest

from megatron_prime.rewards.math.structure import (
    Quantity,
    split_bracketed,
    split_items,
    split_unit,
)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"5\text{ cm}", "5", "cm"),
        ("5 centimetres", "5", "cm"),
        (r"5\text{ cm}^2", "5", "cm2"),
        ("5 m^{3}", "5", "m3"),
        (r"5\text{ square centimeters}", "5", "cm2"),
        (r"5\text{ cubic feet}", "5", "ft3"),
        (r"60\text{ miles per hour}", "60", "mph"),
        (r"9\text{ m/s}^2", "9", "m/s2"),
        (r"50\%", "50", "%"),
        (r"90\degree", "90", "deg"),
        ("101_{2}", "101", "base 2"),
        (r"\frac{1}{2}\text{ hours}", r"\frac{1}{2}", "h"),
        (r"7\text{ apples}", "7", "apples"),
        ("5m", "5m", ""),
        ("5 x", "5 x", ""),
        ("x_1", "x_1", ""),
        (r"42\text{ or so}", r"42\text{ or so}", ""),
        ("42", "42", ""),
    ],
)
def test_units_are_split_from_values(text, value, unit):
    assert split_unit(text) == Quantity(value, unit)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1, 2; 3", ["1", "2", "3"]),
        (r"1 \text{ or } 2", ["1", "2"]),
        ("1, 2, and 3", ["1", "2", "3"]),
        ("(1,2), (3,4)", ["(1,2)", "(3,4)"]),
        (r"\pm 2", ["2", "- 2"]),
        (r"1\pm\sqrt{2}", [r"1+\sqrt{2}", r"1-\sqrt{2}"]),
        (r"\frac{1,2}{3}", [r"\frac{1,2}{3}"]),
        ("5", ["5"]),
    ],
)
def test_items_are_split(text, items):
    assert split_items(text) == items


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(1, 2)", ("(", ["1", "2"], ")")),
        ("[1,2)", ("[", ["1", "2"], ")")),
        (r"\{1,2,3\}", (r"\{", ["1", "2", "3"], r"\}")),
        ("(1,2)+(3,4)", None),
        (r"(1,2\}", None),
        ("1,2", None),
    ],
)
def test_bracketed_parts_are_split(text, parts):
    assert split_bracketed(text) == parts
