"""Which answers are too costly to evaluate: a cheap look at the text, in front of the deadline."""

import math
import re

from megatron_prime.rewards.math.boxed import closing_brace

MAX_CHARS = 400
"""Longer answers are compared as written only."""
MAX_POWERS = 40
MAX_DEPTH = 24
"""Of brackets; the parser's time doubles with each in some places."""
MAX_BARS = 20
MAX_EXPANDED_TERMS = 2000
MAX_EXPONENT_PRODUCT = 10**5
"""Of all numeric exponents: bounds the digits of nested powers and the terms of expanded ones."""

_POWER_OF_SUM = re.compile(r"\(([^()]*[-+][^()]*)\)\s*\^\s*\{?\s*(\d{1,4})")


def is_costly(text: str) -> bool:
    """Whether evaluating `text` could take more than moments: huge powers, power towers, factorials.

    A cheap guard in front of the deadline, not a proof: what slips through is killed there.
    """
    if len(text) > MAX_CHARS or text.count("|") > MAX_BARS or _depth(text) > MAX_DEPTH:
        return True
    if re.search(r"!\s*!|!\s*[)}\]]*\s*!", text):
        return True
    if any(len(digits) > 3 for digits in re.findall(r"(\d+)\s*[)}]*\s*!", text)):
        return True
    if any(len(digits) > 4 for digits in re.findall(r"\\binom\s*\{\s*(\d+)", text)):
        return True
    return _has_costly_powers(text)


def _has_costly_powers(text: str) -> bool:
    if text.count("^") > MAX_POWERS:
        return True
    if any(_num_expanded_terms(*power) > MAX_EXPANDED_TERMS for power in _POWER_OF_SUM.findall(text)):
        return True
    product = 1
    for exponent in _exponents(text):
        if "^" in exponent and re.search(r"\d", exponent):
            return True
        for digits in re.findall(r"\d+", exponent):
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
    """Terms of a sum to a power, multiplied out."""
    return math.comb(int(exponent) + len(re.findall(r"[-+]", base)), int(exponent))


def _exponents(text: str) -> list[str]:
    """What stands above each ^, a tower as one."""
    exponents = []
    for match in re.finditer(r"\^\s*", text):
        rest = match.end()
        if text[rest : rest + 1] == "{":
            end = closing_brace(text, rest + 1)
            end = len(text) if end is None else end + 1
        else:
            plain = re.compile(r"[({]?[-+]?\d*[A-Za-z]?").match(text, rest)
            end = rest + (len(plain[0]) if plain else 1)
        tower = re.compile(r"\s*\^").match(text, end)
        exponents.append(text[rest:end] + (tower[0] if tower else ""))
    return exponents
