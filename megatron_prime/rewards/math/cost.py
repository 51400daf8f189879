"""Recognizes answers that are too expensive to parse or to evaluate, before either is tried."""

import math
import re
from typing import Any

MAX_CHARS = 400
"""Limit on the number of characters."""
MAX_POWERS = 40
"""Limit on the number of exponents."""
MAX_DEPTH = 24
"""Limit on the nesting of brackets; in some places the parser's time doubles with each level."""
MAX_BARS = 20
"""Limit on the number of vertical bars, for the same reason."""
MAX_BITS = 2**18
"""Limit on the number of binary digits of any intermediate result."""
MAX_TERMS = 10_000
"""Limit on the number of terms of a sum or product over an index."""
POINT_BITS = 14.0
"""Upper limit of the binary digits of a variable's value at a point of comparison."""
MAX_POINT = 6.0
"""Upper limit of a variable's value at a point of comparison."""


def is_expensive(text: str) -> bool:
    """Return True if parsing `text` could take long: nested brackets or bars, many powers, length.

    This is a heuristic in front of the deadline, which also stops what it misses. See `num_bits` for the evaluation.
    """
    if (
        len(text) > MAX_CHARS
        or text.count("|") > MAX_BARS
        or text.count("^") > MAX_POWERS
        or _depth(text) > MAX_DEPTH
    ):
        return True
    # The parser evaluates binomials.
    return any(len(digits) > 4 for digits in re.findall(r"\\binom\s*\{\s*(\d+)", text))


def num_bits(form: Any) -> float:  # noqa: ANN401 - a sympy expression
    """Return an upper limit of the binary digits of any number in the evaluation of a parsed expression.

    Variables count as the values that they get in a comparison at points.
    """
    if form.is_Rational:
        return float(abs(form.p).bit_length() + form.q.bit_length())
    if form.is_Symbol:
        return POINT_BITS
    name = type(form).__name__
    if name == "exp" or form.is_Pow:
        base = 2.0 if name == "exp" else num_bits(form.base)
        return base * max(1.0, _largest(form.exp)) + num_bits(form.exp)
    if name in ("Sum", "Product"):
        num_terms = _largest(form.limits[0][2]) + _largest(form.limits[0][1])
        return num_bits(form.function) * num_terms if num_terms <= MAX_TERMS else math.inf
    bits = sum(num_bits(part) for part in form.args if hasattr(part, "is_Pow"))
    if name in ("factorial", "gamma"):
        size = _largest(form.args[0])
        return bits + size * math.log2(size + 2) if size < math.inf else math.inf
    return bits + 1


def _largest(form: Any) -> float:  # noqa: ANN401
    """Return an upper limit of the absolute value, for expressions in exponents; infinity if it is far too large."""
    try:
        if form.is_Rational:
            # Of an integer and a fraction below 1 alike, since the sign of an exponent turns one into the other.
            return max(abs(form.p) / form.q, 0.0)
        if form.is_Symbol:
            return MAX_POINT
        sizes = [_largest(part) for part in form.args if hasattr(part, "is_Pow")]
        if form.is_Mul:
            return math.prod(sizes)
        if form.is_Pow:
            inverse = abs(form.base.q / form.base.p) if form.base.is_Rational and form.base.p else 1.0
            return max(sizes[0], inverse, 1.0) ** sizes[1]
        name = type(form).__name__
        if name == "exp":
            return math.exp(sizes[0])
        if name in ("factorial", "gamma"):
            return math.gamma(sizes[0] + 2)
    except OverflowError:
        return math.inf
    return max(4.0, sum(sizes))  # sums; and functions and constants, all of which are smaller


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
