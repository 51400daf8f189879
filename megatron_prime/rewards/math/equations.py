"""Equations and ratios: what is named, what is claimed, and when two of them say the same."""

import re

from megatron_prime.rewards.math.structure import split_top_level

_LETTER = r"(?:[A-Za-z]|\\(?:theta|alpha|beta|gamma|lambda|mu|phi|omega))"
_NAME = re.compile(
    rf"{_LETTER}(?:_\{{?\w+\}}?)?(?:\([A-Za-z](?:,[A-Za-z])*\))?|\({_LETTER}(?:\s*,\s*{_LETTER})+\)"
)
_ARITHMETIC = re.compile(r"[-+*/^\d]|\\(?:frac|cdot|times|sqrt)")


def strip_assignment(text: str) -> tuple[str, str]:
    """(`x`, `5`) of `x = 5` or `5 = x`; ("", text) when neither side is a name alone, or more than one `=` is there.

    Names are variables, with an index or not, `f(x)`, and tuples of variables.
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
    """What stands between the equals signs; one item when there is none."""
    return [side.strip() for side in split_top_level(text, "=")]


def names_a_quantity(side: str) -> bool:
    r"""Whether a left side only says what is meant: `AB`, `P(A)`, `\angle ABC`, but not `x+y`."""
    return not _ARITHMETIC.search(side)


def difference_of(sides: list[str]) -> str:
    """The expression that an equation sets to zero."""
    return f"({sides[0]})-({sides[1]})"


def ratio_terms(text: str) -> list[str]:
    """`2`, `3` of `2:3`; one item when `text` is no ratio."""
    terms = [term.strip() for term in split_top_level(text, ":")]
    return terms if all(terms) else [text]
