from fractions import Fraction

import pytest

from megatron_prime.rewards.math.units import DEGREE, PERCENT, Unit, split_unit, unit_named


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\text{cm}", "centimetres"),
        (r"\text{km}/\text{h}", r"\text{ kilometers per hour}"),
        (r"\text{m/s}^2", r"\text{ meters per second squared}"),
        (r"\text{m}\cdot\text{s}^{-2}", r"\frac{\text{m}}{\text{s}^2}"),
        (r"\text{ square feet}", r"\text{ft}^{2}"),
        (r"\text{ sq. ft.}", r"\text{ft}^2"),
        (r"\text{ miles per hour}", "mph"),
        (r"\text{N}\cdot\text{m}", "J"),
        ("L", r"\text{ cubic decimeters}"),
        ("apples", r"\text{ different apples}"),
        (r"\degree C", r"\text{ degrees Celsius}"),
        (r"\mu\text{m}", "micrometers"),
        ("square units", "units"),
    ],
)
def test_spellings_of_one_unit(one, other):
    assert unit_named(one) is not None
    assert unit_named(one) == unit_named(other)


@pytest.mark.parametrize(
    ("name", "scale", "of"),
    [
        ("km", 1000, "m"),
        ("h", 3600, "s"),
        ("dollars", 100, "cents"),
        ("kg", 1000, "g"),
        ("cm^2", Fraction(1, 10**4), "m^2"),
    ],
)
def test_units_are_converted_exactly(name, scale, of):
    unit, base = unit_named(name), unit_named(of)
    assert unit is not None
    assert base is not None
    assert unit.dimensions == base.dimensions
    assert unit.scale / base.scale == scale


@pytest.mark.parametrize(
    "name",
    [
        "million",
        "squared",
        "is wrong",
        "below zero",
        "or so",
        "m/",
        "/",
        "m^",
        "per hour of",
        "cm or m",
        "",
        "x",
        "times ten",
        "cm^{99999999999}",
        "()",
    ],
)
def test_other_words_are_no_units(name):
    assert unit_named(name) is None


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"5\text{ cm}", "5", unit_named("cm")),
        (r"\frac{1}{2}\text{ hours}", r"\frac{1}{2}", unit_named("h")),
        (r"16\pi\text{ cm}^2", r"16\pi", unit_named("cm^2")),
        (r"50\%", "50", PERCENT),
        (r"90\degree", "90", DEGREE),
        ("101_{2}", "101", Unit(Fraction(1), (("base 2", 1),))),
        ("5cm", "5", unit_named("cm")),
        ("5m", "5m", None),
        ("5 x", "5 x", None),
        ("5 t", "5 t", None),
        ("7_2", "7_2", None),
        ("5 m^{3}", "5 m^{3}", None),
        ("x_1", "x_1", None),
        (r"42\text{ or so}", r"42\text{ or so}", None),
        (r"5\text{ million}", r"5\text{ million}", None),
        (r"3+\text{ cm}", r"3+\text{ cm}", None),
        ("42", "42", None),
        (r"1\text{ hour }20\text{ minutes}", "(1)*(60)+(20)*(1)", unit_named("minutes")),
        (r"20\text{ minutes }1\text{ hour}", r"20\text{ minutes }1\text{ hour}", None),
    ],
)
def test_units_are_split_from_values(text, value, unit):
    quantity = split_unit(text)
    assert (quantity.value, quantity.unit) == (value, unit)


def test_where_a_unit_is_asked_for_every_word_is_one():
    assert split_unit(r"7\text{ zorks}").unit is None
    assert split_unit(r"7\text{ zorks}", is_asked_for=True).unit == Unit(Fraction(1), (("zork", 1),))
    assert split_unit(r"7\text{ or 8}", is_asked_for=True).unit is None
    assert split_unit("5 m", is_asked_for=True).unit == unit_named("m")
    assert split_unit("5 t", is_asked_for=True).unit is None
    assert split_unit(r"5\text{K}").unit is None
    assert split_unit(r"5\text{K}", is_asked_for=True).unit == unit_named("K")
