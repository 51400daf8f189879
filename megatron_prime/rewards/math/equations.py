"""Splits equations into names and values, and ratios into terms."""

import re

from megatron_prime.rewards.math.structure import split_top_level

_LETTER = r"(?:[A-Za-z]|\\(?:theta|alpha|beta|gamma|lambda|mu|phi|omega))"
_NAME = re.compile(
    rf"{_LETTER}(?:_\{{?\w+\}}?)?(?:\([A-Za-z](?:,[A-Za-z])*\))?|\({_LETTER}(?:\s*,\s*{_LETTER})+\)"
)
_ARITHMETIC = re.compile(r"[-+*/^\d]|\\(?:frac|cdot|times|sqrt)")


def strip_assignment(text: str) -> tuple[str, str]:
    """Split an assignment into name and value.

    Names are variables (with or without an index), `f(x)`, and tuples of variables.

    Returns:
        (`x`, `5`) for `x = 5` and `5 = x`; ("", text) if neither side is only a name, or there is more than one `=`.
    """
    sides = sides_of(text)
    if len(sides) != 2 or not all(sides):
        return "", text
    if _NAME.fullmatch(sides[0]):
        return sides[0], sides[1]
    if _NAME.fullmatch(sides[1]):
        return sides[1], sides[0]
    return "", text


def sides_of(text: str) -> list[str]:
    """Return the sides of an equation or chain of equations; one item if there is no equals sign."""
    return [side.strip() for side in split_top_level(text, "=")]


def names_a_quantity(side: str) -> bool:
    r"""Return True if a left side only names a quantity: `AB`, `P(A)`, `\angle ABC`, but not `x+y`."""
    return not _ARITHMETIC.search(side)


def difference_of(sides: list[str]) -> str:
    """Return the expression that an equation sets to zero: left side minus right side."""
    return f"({sides[0]})-({sides[1]})"


def ratio_terms(text: str) -> list[str]:
    """Return the terms of a ratio, such as `2` and `3` of `2:3`; one item if `text` is not a ratio."""
    terms = [term.strip() for term in split_top_level(text, ":")]
    return terms if all(terms) else [text]
