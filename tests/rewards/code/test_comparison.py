import pytest

from megatron_prime.rewards.code.comparison import numbers_equal, outputs_equal, results_equal


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("3\n", "3"),
        ("1 2\n3\n", "1 2  \r\n3\r\n\r\n"),
        ("0.5", "0.50000000001"),
        ("1 0.333333333", "1 0.33333333333333"),
        ("yes 1e3", "yes 1000.0"),
        ("", "\n"),
        ("\n\nYES\n1 2\n", "YES\n1 2"),
        ("1", "\n1"),
        ("inf", "inf"),
    ],
)
def test_equal_outputs(expected, printed):
    assert outputs_equal(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("3", "4"),
        ("3", "3.0"),
        ("3", "3 3"),
        ("3", "2\n3"),
        ("1 2", "1\n2"),
        ("0.5", "0.51"),
        ("0.5", "nan"),
        ("0.5", "x"),
        ("3", ""),
        ("Yes", "yes"),
        ("100000000000000000001", "100000000000000000002"),
        ("e", "f"),
    ],
)
def test_different_outputs(expected, printed):
    assert not outputs_equal(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (3, "3"),
        ([3], "3"),
        ([[1, 2]], "[1, 2]"),
        ([1, 2], "[1,2]"),
        (0.5, "0.5000000001"),
        ({"a": [1.0]}, '{"a": [1]}'),
        (None, "null"),
        ([[]], "[]"),
        ("x", '"x"'),
    ],
)
def test_equal_results(expected, printed):
    assert results_equal(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (3, "4"),
        (3, '"3"'),
        ([1, 2], "1"),
        ([1, 2], "[2, 1]"),
        (0.5, "NaN"),
        (float("inf"), "1e308"),
        ({"a": 1}, '{"b": 1}'),
        (3, ""),
        (3, "3 3"),
        (3, "[" * 100_000),
        (3, "9" * 100_000),
        (0.5, "9" * 1000),
        (None, "0"),
    ],
)
def test_different_results(expected, printed):
    assert not results_equal(expected, printed)


NUMBERS = {
    # expected, value -> whether they are equal
    "float noise": ("0.3", "0.30000000000000004", True),
    "six digits of a longer number": ("0.123456789012", "0.123457", True),
    "cut instead of rounded": ("0.123456789012", "0.123455", False),
    "a tolerance of 1e-6": ("3.1415926535", "3.1415927", True),
    "more than 1e-6": ("3.1415926535", "3.1416", False),
    "1e-5 of the size": ("100000.123456", "100000.9", False),
    "1e-5 of a small one": ("0.123456789", "0.1234575", False),
    "two decimals": ("1234567.89", "1234567.0", False),
    "two decimals, one more": ("1234567.89", "1234567.90", False),
    "two decimals from more": ("1234567.89", "1234567.8912", True),
    "one decimal": ("1000000.5", "1000001.5", False),
    "one decimal, near": ("0.5", "0.54", False),
    "five decimals": ("0.66667", "0.6666666666666666", True),
    "five decimals, one more": ("3.14159", "3.14160", False),
    "zero": ("0.0", "1e-17", True),
    "minus zero": ("0.00", "-0.0", True),
    "not zero": ("0.0", "0.001", False),
    "tiny": ("1.6e-19", "3.2e-19", False),
    "tiny, the same": ("1.6e-19", "0.00000000000000000016", True),
    "tiny, and zero": ("1.6e-19", "0.0", False),
    "tiny, and rounded to zero": ("1.6e-19", "0.000000", False),
    "small": ("0.0000012", "0.0000020", False),
    "large": ("1.5e300", "1.6e300", False),
    "larger than any float": ("1.5e5000", "1.5e5000", True),
    "an exponent": ("1e3", "1000", True),
    "sign": ("-0.5", "0.5", False),
    "NaN": ("nan", "nan", False),
    "infinite": ("inf", "inf", False),
    "underscores": ("1_0.5", "10.5", False),
    "other digits": ("0.5", "\u0660.5", False),
    "too long": ("0." + "1" * 500, "0." + "1" * 499 + "2", False),
    "an exponent without end": ("0.5", "1e999999999", False),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_decimal_numbers(case):
    expected, value, is_equal = NUMBERS[case]
    assert numbers_equal(expected, value) is is_equal


@pytest.mark.parametrize(
    ("expected", "printed", "is_equal"),
    [
        (0.66667, "0.6666666666666666", True),
        (22.5, "22.500000000001", True),
        (22.5, "22.5001", False),
        (1234567.89, "1234568.0", False),
        (1.0, "1", True),
        (1.6e-19, "0", False),
        ({"1": 2.5}, '{"1": 2.5}', True),
        (10**6000, "1" + "0" * 6000, True),
        (10**6000 + 1, "1" + "0" * 6000, False),
        (7, "1" + "0" * 1_000_000, False),
    ],
    ids=["rounded", "noise", "near", "two decimals", "whole", "tiny", "dictionary", "long", "longer", "huge"],
)
def test_numbers_in_results(expected, printed, is_equal):
    assert results_equal(expected, printed) is is_equal


def test_line_ends_are_alike():
    texts = ["1 2\n3\n", "1 2\r\n3\r\n", "1 2\r3\r", "1 2  \n3", "1 2\r\n3\n\r\n"]
    assert all(outputs_equal(a, b) for a in texts for b in texts)
    assert not outputs_equal("1\n2", "1\n\n2")
