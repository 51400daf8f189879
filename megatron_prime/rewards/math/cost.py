"""Recognizes answers that are too expensive to evaluate, by a cheap inspection of their text."""

import math
import re

from megatron_prime.rewards.math.boxed import closing_brace

MAX_CHARS = 400
"""Limit on the number of characters."""
MAX_POWERS = 40
"""Limit on the number of exponents."""
MAX_DEPTH = 24
"""Limit on the nesting of brackets; in some places the parser's time doubles with each level."""
MAX_BARS = 20
"""Limit on the number of vertical bars, for the same reason."""
MAX_EXPANDED_TERMS = 2000
"""Limit on the number of terms of a sum to a power, after expansion."""
MAX_EXPONENT_PRODUCT = 10**5
"""Limit on the product of all numeric exponents, which bounds the digits of nested powers."""

_POWER_OF_SUM = re.compile(r"\(([^()]*[-+][^()]*)\)\s*\^\s*\{?\s*(\d{1,4})")


def is_expensive(text: str) -> bool:
    """Return True if evaluating `text` could take long: huge powers, power towers, factorials.

    This is a heuristic in front of the deadline, which also stops the evaluations that it misses.
    """
    if len(text) > MAX_CHARS or text.count("|") > MAX_BARS or _depth(text) > MAX_DEPTH:
        return True
    # (5!)! already has 199 digits, and every further level or digit multiplies the cost.
    if re.search(r"!\s*!|!\s*[)}\]]*\s*!", text):
        return True
    # The factorial of a number of four digits has more than 2500 digits.
    if any(len(digits) > 3 for digits in re.findall(r"(\d+)\s*[)}]*\s*!", text)):
        return True
    if any(len(digits) > 4 for digits in re.findall(r"\\binom\s*\{\s*(\d+)", text)):
        return True
    return _has_expensive_powers(text)


def _has_expensive_powers(text: str) -> bool:
    if text.count("^") > MAX_POWERS:
        return True
    if any(_num_expanded_terms(*power) > MAX_EXPANDED_TERMS for power in _POWER_OF_SUM.findall(text)):
        return True
    product = 1
    for exponent in _exponents(text):
        # A power tower with numbers, such as 9^{9^9}, cannot be evaluated at all.
        if "^" in exponent and re.search(r"\d", exponent):
            return True
        for digits in re.findall(r"\d+", exponent):
            # Nine digits exceed the limit in any case, and int() of an unlimited number of digits is slow.
            product *= max(1, int(digits[:9]))
            if len(digits) > 4 or product > MAX_EXPONENT_PRODUCT:
                return True
    return False


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _num_expanded_terms(base: str, exponent: str) -> int:
    """Return the number of terms of a sum to a power after expansion, by the multinomial theorem."""
    return math.comb(int(exponent) + len(re.findall(r"[-+]", base)), int(exponent))


def _exponents(text: str) -> list[str]:
    """Return the exponent after each ^; that of a power tower includes the next ^."""
    exponents = []
    for match in re.finditer(r"\^\s*", text):
        start = match.end()
        if text[start : start + 1] == "{":
            end = closing_brace(text, start + 1)
            end = len(text) if end is None else end + 1
        else:
            plain = re.compile(r"[({]?[-+]?\d*[A-Za-z]?").match(text, start)
            end = start + (len(plain[0]) if plain else 1)
        tower = re.compile(r"\s*\^").match(text, end)
        exponents.append(text[start:end] + (tower[0] if tower else ""))
    return exponents
