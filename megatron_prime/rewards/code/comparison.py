"""Comparison of a program's output, or a function's result, with the expected one.

It runs outside the sandbox, on plain data.
"""

import json
import math
from typing import Any

RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-8
"""Tolerances of decimal numbers, as in numpy.allclose, because rounding depends on the order of summation.

Whole numbers are compared exactly.
"""


def outputs_equal(expected: str, printed: str) -> bool:
    """Compare two outputs line by line, with decimal numbers equal within the tolerance.

    White space at the ends of lines, and blank lines at the end, are ignored.
    """
    expected_lines, lines = _lines(expected), _lines(printed)
    if expected_lines == lines:
        return True
    if len(expected_lines) != len(lines):
        return False
    return all(_lines_equal(a, b) for a, b in zip(expected_lines, lines, strict=True))


def results_equal(expected: object, printed: str) -> bool:
    """Return True if the JSON text `printed` is the value `expected`, or its only item.

    Eurus-2-RL-Data wraps results in lists of length one.
    """
    try:
        result = json.loads(printed)
        if _values_equal(expected, result):
            return True
        return isinstance(expected, list) and len(expected) == 1 and _values_equal(expected[0], result)
    except (ValueError, RecursionError):  # not JSON, more digits than int() accepts, or nested too deeply
        return False


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _lines_equal(expected: str, printed: str) -> bool:
    expected_words, words = expected.split(), printed.split()
    if len(expected_words) != len(words):
        return False
    return all(_words_equal(a, b) for a, b in zip(expected_words, words, strict=True))


def _words_equal(expected: str, printed: str) -> bool:
    if expected == printed:
        return True
    # Only an expected number with a decimal point or exponent has a tolerance; 1000001 is not 1000000.
    if not any(character in expected for character in ".eE"):
        return False
    try:
        return _close(float(expected), float(printed))
    except ValueError:
        return False


def _values_equal(expected: Any, result: Any) -> bool:  # noqa: ANN401 - JSON values
    if isinstance(expected, float) and isinstance(result, float | int):
        return _close(expected, result)
    if isinstance(expected, list) and isinstance(result, list):
        return len(expected) == len(result) and all(map(_values_equal, expected, result))
    if isinstance(expected, dict) and isinstance(result, dict):
        return expected.keys() == result.keys() and all(
            _values_equal(expected[k], result[k]) for k in expected
        )
    return bool(expected == result)


def _close(expected: float, value: float) -> bool:
    # The difference of two infinities is NaN, which no tolerance accepts.
    if not math.isfinite(expected):
        return expected == value
    try:
        return abs(value - expected) <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * abs(expected)
    except OverflowError:  # an integer larger than any float
        return False
