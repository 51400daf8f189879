r"""Comparison of a program's output, or a function's result, with the expected one.

It runs outside the sandbox, on plain data. Whole numbers are compared exactly. A decimal number is compared with
respect to the digits that the expected one shows, since rounding and the order of summation may differ:

    expected 0.333333333, printed 0.33333333333333    equal: within 1e-6 of its size
    expected 1234567.89,  printed 1234567.0           different: it has two decimals, and they are others
    expected 0.66667,     printed 0.6666666666666666  equal: rounded to the five decimals that both have
    expected 1.6e-19,     printed 3.2e-19             different, and so is 0.000000
"""

import json
import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

RELATIVE_TOLERANCE = Decimal("1e-6")
"""Tolerance of decimal numbers, which problems usually state for real answers."""
NOISE = Decimal("1e-9")
"""Tolerance of an expected decimal zero, in whose place a sum may leave a rest."""
EXACT_DECIMALS = 6
"""An expected number with fewer decimals is one of so many: the tolerance is at most half a unit of its last place."""
ROUNDED_DECIMALS = 5
"""Decimals that both numbers must have, at least, for one to be the other rounded."""
MAX_NUMBER = 400
"""Characters of the longest text that is compared as a decimal number."""
MAX_INT_DIGITS = 4000
"""Digits up to which Python converts text to an integer in any case (4300 by default)."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_CONTEXT = Context(prec=MAX_NUMBER + 20, rounding=ROUND_HALF_EVEN)


def outputs_equal(expected: str, printed: str) -> bool:
    """Compare two outputs line by line, with decimal numbers equal within the tolerance.

    Line ends are alike; white space at the ends of lines, and blank lines at the begin and the end, are ignored. The
    examples that data sets copy from Codeforces begin with a blank line.
    """
    expected_lines, lines = _lines(expected), _lines(printed)
    if expected_lines == lines:
        return True
    if len(expected_lines) != len(lines):
        return False
    return all(_lines_equal(a, b) for a, b in zip(expected_lines, lines, strict=True))


def results_equal(expected: object, printed: str) -> bool:
    """Return True if the JSON text `printed` is the value `expected`, or its only item.

    Eurus-2-RL-Data wraps results in lists of length one. JSON has no other keys than text, so that {1: 2} and
    {"1": 2} are one dictionary.
    """
    try:
        result = json.loads(printed, parse_int=_integer)
        if _values_equal(expected, result):
            return True
        return isinstance(expected, list) and len(expected) == 1 and _values_equal(expected[0], result)
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return False


def unified_line_ends(text: str) -> str:
    r"""Return a text whose lines end with \n, in whatever way a system ended them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def numbers_equal(expected: str, value: str) -> bool:
    """Compare two decimal numbers given as text; see the module's docstring. Other text is unequal."""
    if max(len(expected), len(value)) > MAX_NUMBER:
        return False
    if not _NUMBER.fullmatch(expected) or not _NUMBER.fullmatch(value):
        return False
    # Decimal numbers keep the digits as they are shown, which a float does not.
    number, other = Decimal(expected), Decimal(value)
    difference = _CONTEXT.abs(_CONTEXT.subtract(number, other))
    if not number:
        return difference <= NOISE
    tolerance = _CONTEXT.multiply(RELATIVE_TOLERANCE, abs(number))
    decimals = _decimals(number)
    if decimals < EXACT_DECIMALS:
        tolerance = min(tolerance, _half_unit(decimals))
    if difference <= tolerance:
        return True
    shared = min(decimals, _decimals(other))
    # A zero is not the value of a number that is not zero, however few decimals are printed.
    return shared >= ROUNDED_DECIMALS and bool(other) and difference <= _half_unit(shared)


def _decimals(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "infinities and NaN have no digits"
    return -exponent


def _half_unit(decimals: int) -> Decimal:
    return Decimal((0, (5,), -decimals - 1))


def _integer(digits: str) -> int | Decimal:
    # Converting a long text to an integer takes quadratic time, and Python refuses it by default.
    return int(digits) if len(digits) <= MAX_INT_DIGITS else Decimal(digits)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in unified_line_ends(text).strip().split("\n")]


def _lines_equal(expected: str, printed: str) -> bool:
    expected_words, words = expected.split(), printed.split()
    if len(expected_words) != len(words):
        return False
    return all(_words_equal(a, b) for a, b in zip(expected_words, words, strict=True))


def _words_equal(expected: str, printed: str) -> bool:
    if expected == printed:
        return True
    # Only an expected number with a decimal point or exponent has a tolerance; 1000001 is not 1000000.
    return any(character in expected for character in ".eE") and numbers_equal(expected, printed)


def _values_equal(expected: Any, result: Any) -> bool:  # noqa: ANN401 - JSON values
    if isinstance(expected, float) and isinstance(result, float | int):
        return expected == result or numbers_equal(repr(expected), repr(result))
    if isinstance(expected, list) and isinstance(result, list):
        return len(expected) == len(result) and all(map(_values_equal, expected, result))
    if isinstance(expected, dict) and isinstance(result, dict):
        return expected.keys() == result.keys() and all(
            _values_equal(expected[k], result[k]) for k in expected
        )
    return bool(expected == result)
