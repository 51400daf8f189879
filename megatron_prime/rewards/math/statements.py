r"""Compares statements: chains of relations, functions by cases, values with an approximation behind."""

import re
from collections.abc import Callable

from megatron_prime.rewards.math.equations import curves_equal, sides_of
from megatron_prime.rewards.math.notation import squeezed
from megatron_prime.rewards.math.structure import split_bracketed, split_top_level
from megatron_prime.rewards.math.values import MIN_DIGITS, number, parsed

_RELATION = re.compile(r"(<=|>=|<|>|=|\\(?:le|ge|ne|perp|parallel|sim|cong)(?![A-Za-z]))")
_REVERSED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_SYMMETRIC = {"=", r"\ne", r"\perp", r"\parallel", r"\sim", r"\cong"}
_APPROXIMATELY = re.compile(
    r"\(?\s*\\(?:approx|simeq)(?![A-Za-z])|\\text\{\s*\(?\s*(?:approximately|about|approx\.?)\s*\}"
)
_CASES = re.compile(r"(?:([^=]+)=)?\s*\\begin\{cases\}(.*)\\end\{cases\}\s*", flags=re.DOTALL)
_CONDITION_WORD = re.compile(
    r"\\text\{\s*,?\s*(?:if|for|when|where)\s*\}|(?<![A-Za-z])(?:if|for|when)(?![A-Za-z])"
)
_POINT = re.compile(r"([A-Z](?:_\{?\d\}?)?'?)\s*=?\s*(\(.*\))")
_SET_NAME = re.compile(r"([A-Z](?:\s*\\(?:cap|cup|setminus)\s*[A-Z])*)\s*=\s*(\\\{.*|\\emptyset\s*)")


def chains_equal(gold: str, given: str) -> bool | None:
    r"""Return True if two chains of relations say the same with the same terms, as `a<b` and `b>a`; None otherwise.

    What is the same in another form, as `2a<2b`, is left to others.
    """
    (terms, relations), (other_terms, other_relations) = _chain(gold), _chain(given)
    if not relations or len(relations) != len(other_relations):
        return None
    if set(relations) == set(other_relations) and len(set(relations)) == 1 and relations[0] in _SYMMETRIC:
        # In a longer chain, only equality may be read in any order.
        is_ordered = len(relations) > 1 and relations[0] != "="
        if is_ordered:
            return True if other_terms in (terms, terms[::-1]) else None
        return True if sorted(terms) == sorted(other_terms) else None
    reversed_relations = [_REVERSED.get(relation, "") for relation in reversed(other_relations)]
    return True if (terms, relations) == (other_terms[::-1], reversed_relations) else None


def _chain(text: str) -> tuple[list[str], list[str]]:
    parts = [squeezed(part) for part in _RELATION.split(text)]
    relations = [{"<=": r"\le", ">=": r"\ge"}.get(part, part) for part in parts[1::2]]
    return parts[0::2], relations if all(parts[0::2]) else []


def without_approximation(text: str) -> str:
    r"""Return the value in `6\sqrt{5} \approx 13.416`, or the text unchanged unless the second side is its rounding."""
    match = _APPROXIMATELY.search(text)
    if match is None or not text[: match.start()].strip():
        return text
    exact, rest = text[: match.start()].strip(), text[match.end() :].strip()
    if match[0].startswith("(") or "(" in match[0]:
        rest = re.sub(r"\s*(?:\)|\\text\{\s*\)\s*\})$", "", rest)
    rounded = re.fullmatch(r"(-?\d*\.?(\d*))((?:\s*\\text\{[^{}]*\})?(?:\^\{?\d\}?)?)", rest)
    unit = rounded[3].strip() if rounded is not None else ""
    if rounded is None or not re.search(r"\d", rounded[1]) or (unit and not exact.endswith(unit)):
        return text
    bare = exact.removesuffix(unit).strip() if unit else re.sub(r"\\text\{[^{}]*\}$", "", exact)
    value = number(parsed(sides_of(bare)[-1]))
    digits = number(parsed(rounded[1]))
    if value is None or digits is None or value.is_infinite or value.is_Integer:
        return text
    # Rounded or cut off, in units of the last digit.
    error = ((abs(value) - abs(digits)) * 10 ** len(rounded[2])).evalf(MIN_DIGITS)
    has_sign = bool(value.is_negative) == rounded[1].startswith("-")
    return exact if has_sign and -0.5 <= error < 1 else text


def both_signs_equal(gold: str, given: str) -> bool | None:
    r"""Compare an equation with `y = \pm 2\sqrt{x}`, both of its solutions; None if the answer is no such equation."""
    solved = re.fullmatch(r"([A-Za-z])\s*=\s*\\pm(?![A-Za-z])(.+)", given)
    sides = sides_of(gold)
    if solved is None or len(sides) != 2 or r"\pm" in gold or given.count(r"\sqrt") > 1:
        return None
    # Of a sum, the sign would belong to the first term alone.
    if len(split_top_level(solved[2].strip(), "+-=,;")) > 1:
        return None
    return curves_equal(sides, [f"{solved[1]}^2", f"({solved[2]})^2"])


def cases_equal(gold: str, given: str, equal: Callable[[str, str], bool]) -> bool | None:
    """Compare functions by cases, in any order of the cases; None if the ground truth is none."""
    ours, theirs = _CASES.fullmatch(gold), _CASES.fullmatch(given)
    if ours is None:
        return None
    if theirs is None or (ours[1] and theirs[1] and squeezed(ours[1]) != squeezed(theirs[1])):
        return False
    rows, others = _rows(ours[2]), _rows(theirs[2])
    if rows is None or others is None or len(rows) != len(others):
        return False
    for value, condition in rows:
        same = [other for other in others if equal(condition, other[1])]
        if len(same) != 1 or not equal(value, same[0][0]):
            return False
        others.remove(same[0])
    return True


def _rows(text: str) -> list[tuple[str, str]] | None:
    """Return the values and conditions, or None if a row has another form."""
    rows = []
    for row in re.split(r"\\\\(?:\[[^\]]*\])?", text):
        if not row.strip():
            continue
        cells = _CONDITION_WORD.sub("", row).split("&")
        if len(cells) != 2 or r"\text" in "".join(cells):
            return None
        value, condition = (cell.strip().rstrip(",.;").strip() for cell in cells)
        rows.append((value, condition))
    return rows if all(value and condition for value, condition in rows) else None


def split_name(text: str) -> tuple[str, str]:
    r"""Split a named point or set, such as `P(3,-4)` and `S=\{1,2\}`, into name and value; the name is "" otherwise."""
    point = _POINT.fullmatch(text.strip())
    if point is not None and (parts := split_bracketed(point[2])) is not None and len(parts[1]) > 1:
        return point[1], point[2]
    named = _SET_NAME.fullmatch(text.strip())
    return ("", text) if named is None else (squeezed(named[1]), named[2].strip())
