r"""Compares infinite families: residue classes, and values with a whole parameter such as `\frac{\pi}{4}+k\pi`."""

import re
from dataclasses import dataclass
from typing import Any

from megatron_prime.rewards.math.structure import split_items
from megatron_prime.rewards.math.values import MIN_DIGITS, forms_equal, number, parsed

_MODULUS = re.compile(
    r"(?:,?\s*\(?\s*\\pmod\s*\{?\s*(\d+)\s*\}?\s*\)?|\(\s*\\(?:bmod|mod)\s*\{?\s*(\d+)\s*\}?\s*\)|\\(?:bmod|mod)\s*\{?\s*(\d+)\s*\}?"
    r"|\(?\s*\\text\{\s*\(?\s*mod(?:ulo)?\s*\}\s*(\d+)\s*\)?|\\text\{\s*\(?\s*mod(?:ulo)?\s*(\d+)\s*\)?\s*\}|\(\s*mod(?:ulo)?\s*(\d+)\s*\))"
)
_CONGRUENT = re.compile(r"([A-Za-z])\s*(?:\\equiv(?![A-Za-z])|=)\s*(.+)")
_PARAMETER = re.compile(
    r"[,;]?\s*(?:\\text\{\s*,?\s*(?:where|for|with|for (?:any|all|every|some)|for integers?)\s*\}|where|for)?\s*\(?\s*"
    r"([a-z])\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*)?Z\s*\}?|(?:\\text\{\s*)?(?:is\s+)?(?:any|an)\s+integer\s*\}?)\s*\)?"
)

_BUILDER = re.compile(r"\\\{(.+?)(?:\\mid(?![A-Za-z])|\||:)\s*([a-z])\s*\\in\s*\\mathbb\{Z\}\s*\\\}")


_DIVIDES = re.compile(r"(\d{1,9})\s*(?:\\mid(?![A-Za-z])|\|)\s*([A-Za-z])")


@dataclass(frozen=True, slots=True)
class Residues:
    r"""Residue classes, as `x \equiv 1, 3 \pmod 7` gives them."""

    variable: str
    values: tuple[str, ...]
    modulus: int


def residues(text: str) -> Residues | None:
    r"""Parse `3 \pmod 7`, `x\equiv 3 \pmod{7}` and `7\mid x`; None for any other text."""
    if divides := _DIVIDES.fullmatch(text.strip()):
        return Residues(divides[2], ("0",), int(divides[1])) if int(divides[1]) > 0 else None
    found = list(_MODULUS.finditer(text))
    if len(found) != 1 or found[0].end() != len(text.rstrip()):
        return None
    modulus = next(group for group in found[0].groups() if group)
    body = text[: found[0].start()].strip()
    congruent = _CONGRUENT.fullmatch(body)
    variable, body = (congruent[1], congruent[2]) if congruent else ("", body)
    return (
        Residues(variable, tuple(split_items(body)), int(modulus)) if body and int(modulus[:9]) > 0 else None
    )


def residues_equal(gold: Residues, given: Residues) -> bool:
    """Return True if both name the same classes of the same modulus."""
    if gold.modulus != given.modulus or (
        gold.variable and given.variable and gold.variable != given.variable
    ):
        return False
    classes = []
    for side in (gold, given):
        values = [number(parsed(text)) for text in side.values]
        if any(value is None or not value.is_Integer for value in values):
            return False
        classes.append(sorted(int(value) % side.modulus for value in values if value is not None))
    return classes[0] == classes[1]


def split_parameter(text: str) -> tuple[str, str]:
    r"""Split `k\pi, k\in\mathbb{Z}` into the parameter and the rest; the parameter is "" if none is declared."""
    if builder := _BUILDER.fullmatch(text.strip()):
        return builder[2], builder[1].strip()
    matches = list(_PARAMETER.finditer(text))
    if len(matches) != 1 or matches[0].end() != len(text.rstrip()) or not text[: matches[0].start()].strip():
        return "", text
    return matches[0][1], text[: matches[0].start()].strip().rstrip(",;")


def progressions_equal(gold: str, given: str, parameter: str, other: str) -> bool:
    r"""Return True if two values have the same set as their whole parameter varies.

    Both are a + kp, in the variable k that is named, or the only one if the name is "": the periods are equal up to
    the sign, and the beginnings differ by a multiple of the period.
    """
    import sympy

    terms: list[tuple[Any, Any]] = []
    for text, name in ((gold, parameter), (given, other)):
        form = parsed(re.sub(rf"^\s*{LETTER}\s*=\s*", "", text))
        symbols = [symbol for symbol in getattr(form, "free_symbols", ()) if name in ("", symbol.name)]
        if not isinstance(form, sympy.Expr) or len(symbols) != 1 or len(form.free_symbols) != 1:
            return False
        values: list[Any] = [form.xreplace({symbols[0]: sympy.Integer(index)}).doit() for index in range(3)]
        period = values[1] - values[0]
        if not forms_equal(2 * values[1], values[0] + values[2]):
            return False
        terms.append((values[0], period))
    (start, period), (other_start, other_period) = terms
    zero = sympy.Integer(0)
    if forms_equal(period, zero) or not (
        forms_equal(period, other_period) or forms_equal(period, -other_period)
    ):
        return False
    shift = (start - other_start) / period
    nearest = sympy.Integer(round(float(shift.evalf(MIN_DIGITS)))) if shift.is_comparable else None
    return nearest is not None and forms_equal(start - other_start, nearest * period)


LETTER = r"(?:[A-Za-z]|\\(?:theta|alpha|beta|phi))"
"""A name that may stand before a family, as in `x = k\\pi`."""
