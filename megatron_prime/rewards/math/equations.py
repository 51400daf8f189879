"""Splits equations into names and values and ratios into terms, and compares equations of curves."""

import re
from typing import Any

from megatron_prime.rewards.math.cost import MAX_BITS, num_bits
from megatron_prime.rewards.math.structure import split_top_level
from megatron_prime.rewards.math.values import MIN_DIGITS, forms_equal, parsed

_LETTER = (
    r"(?:[A-Za-z]|\\(?:theta|alpha|beta|gamma|delta|lambda|mu|phi|varphi|omega|rho|sigma|tau|Delta|ell))"
)
_NAME = re.compile(
    rf"{_LETTER}(?:_\{{?[\w+-]+\}}?|_\{{\d,\s?\d\}})?'?(?:\^\{{-1\}})?(?:\({_LETTER}(?:,{_LETTER})*\))?|\({_LETTER}(?:\s*,\s*{_LETTER})+\)"
)
_GREEK = (
    r"\\(?:theta|alpha|beta|gamma|delta|lambda|mu|phi|varphi|omega|rho|sigma|tau|Delta|ell|pi)(?![A-Za-z])"
)
_INDEX = r"(?:_\{?(?:\\?\w|\\text\{[\w ]+\}|[ ,+-])+\}?|_\{\\triangle [A-Z]+\})"
_QUANTITY = re.compile(
    # Segments, angles and areas; indexed letters and words; derivatives; functions at a point.
    r"(?:m?\s*\\(?:angle|triangle|measuredangle|overline|widehat|overrightarrow|vec|hat|bar)\s*)?"
    rf"(?:\{{?(?:[A-Z]{{1,5}}|[a-z])'?\}}?{_INDEX}?|\[[A-Z]{{3,6}}\]|\|[A-Z]{{2}}\||[a-z]{_INDEX}?'{{0,2}}|{_GREEK}{_INDEX}?)"
    r"|\\text\{[A-Za-z ]+\}|[A-Z]?[a-z]{3,}(?: [a-z]+)*|\\frac\{d[a-z]?\}\{d[a-z]\}"
    rf"|[fghFGH]{_INDEX}?'{{0,2}}(?:\^\{{-?\d+\}})?\([^()]*(?:\([^()]*\))?\)|\([fgh]\s*\\circ\s*[fgh]\)\([^()]*\)"
    # Numbers of elements, lengths of vectors; functions of a matrix.
    r"|\\?#\s*[A-Z]|(?:n\s*\(|\|)\s*[A-Z](?:\s*\\(?:cap|cup|setminus)(?![A-Za-z])\s*[A-Z])*\s*[|)]"
    r"|(?:\||\\\|)\s*\\(?:vec|overrightarrow|overline|text)\s*\{[A-Za-z]{1,2}\}\s*(?:\||\\\|)|\\\|\s*[a-w]\s*\\\|"
    r"|(?:\\(?:det|deg|dim)|\\operatorname\{(?:rank|tr|det|dim|deg)\})\s*\(?\s*[A-Zfgp]\s*\)?"
    r"|(?:P|E|Pr|Var|\\Pr)\s*[(\[][^()]*[)\]]|[A-Za-w]\(-?\d+\)|[A-Za-w]\([a-z](?:,\s*[a-z])*\)"
)
_SUM_OF_NAMES = re.compile(r"[a-wA-W](?:[+-][a-wA-W])+")
_FUNCTIONS = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|lg|exp|sqrt|sinh|cosh|tanh|arc\w+)(?![A-Za-z])")


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
    r"""Return True if a left side only names a quantity: `AB`, `P(A)`, `\angle ABC`, `m+n`, but not `2x` or `x+y`.

    A sum of letters is what some questions ask for; x, y and z are unknowns, whose equations have solutions instead.
    """
    side = side.strip()
    if _FUNCTIONS.search(side):
        return False
    return bool(
        _NAME.fullmatch(side) or _QUANTITY.fullmatch(side) or _SUM_OF_NAMES.fullmatch(side.replace(" ", ""))
    )


def curves_equal(gold: list[str], given: list[str]) -> bool:
    """Return True if two equations, as pairs of sides, have the same polynomial up to a constant factor.

    Denominators are cleared first, so that y = 1/x equals xy = 1; both have the same points. Solved forms that leave
    out a part (the upper half of a circle) and products with other curves differ.
    """
    left, right = _cleared(gold), _cleared(given)
    return left is not None and right is not None and _proportional(left, right) is not None


def regions_equal(gold: str, given: str) -> bool | None:
    """Compare two inequalities such as 2x + 2y > 2; None if one side is none or has several relations."""
    sides = [_RELATION.split(text) for text in (gold, given)]
    if any(len(parts) != 3 for parts in sides):
        return None
    relations = [parts[1].replace("\\", "").replace("<=", "le").replace(">=", "ge") for parts in sides]
    differences = [_cleared([parts[0], parts[2]], keeps_denominators=True) for parts in sides]
    if any(difference is None for difference in differences):
        return None
    is_positive = _proportional(*differences)
    return is_positive is not None and relations[0] == (
        relations[1] if is_positive else _FLIPPED[relations[1]]
    )


_RELATION = re.compile(r"(<=|>=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>)")
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}


def _proportional(left: Any, right: Any) -> bool | None:  # noqa: ANN401 - sympy expressions
    """Return whether the constant factor between two expressions is positive; None if there is no such factor."""
    if not left.free_symbols or left.free_symbols != right.free_symbols:
        return None
    import sympy

    point = {
        symbol: sympy.Rational(83 + 12 * index, 57)
        for index, symbol in enumerate(sorted(left.free_symbols, key=str))
    }
    scale, other_scale = left.xreplace(point), right.xreplace(point)
    zero = sympy.Integer(0)
    # a(x) / a(p) = b(x) / b(p) at every x, cross-multiplied, says that the factor between a and b is constant.
    if (
        forms_equal(scale, zero)
        or forms_equal(other_scale, zero)
        or not forms_equal(left * other_scale, right * scale)
    ):
        return None
    return bool(sympy.sign((scale / other_scale).evalf(MIN_DIGITS)) == 1)


def _cleared(sides: list[str], *, keeps_denominators: bool = False) -> Any | None:  # noqa: ANN401
    """Return the numerator of the difference of both sides, or None if that is no expression."""
    import sympy

    forms = [parsed(side) for side in sides]
    if len(forms) != 2 or not all(isinstance(form, sympy.Expr) for form in forms):
        return None
    difference = forms[0] - forms[1]
    if num_bits(difference) > MAX_BITS:
        return None
    if not keeps_denominators and any(
        power.exp.is_negative and power.base.free_symbols for power in difference.atoms(sympy.Pow)
    ):
        return sympy.fraction(sympy.together(difference.doit()))[0]
    return difference


def ratio_terms(text: str) -> list[str]:
    r"""Return the terms of a ratio, such as `2` and `3` of `2:3` and `2\text{ to }3`; one item for other texts."""
    text = re.sub(r"(?<=\d)\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":", text)
    terms = [term.strip() for term in split_top_level(text, ":")]
    return terms if all(terms) else [text]
