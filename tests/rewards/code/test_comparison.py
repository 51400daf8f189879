import pytest

from megatron_prime.rewards.code.comparison import outputs_equal, results_equal


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("3\n", "3"),
        ("1 2\n3\n", "1 2  \r\n3\r\n\r\n"),
        ("0.5", "0.50000000001"),
        ("1 0.333333333", "1 0.33333333333333"),
        ("yes 1e3", "yes 1000.0"),
        ("", "\n"),
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
