"""Reads subsets of the real line from interval notation, inequalities, or all numbers but some."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_prime.rewards.math.structure import split_bracketed, split_top_level
from megatron_prime.rewards.math.values import number, parsed

Interval = tuple[str, str, str, str]
"""An interval as opening bracket, lower end, upper end, closing bracket."""
ALL: Interval = ("(", r"-\infty", r"\infty", ")")

_LETTER = r"(?:[A-Za-z]|\\(?:theta|alpha|beta|lambda))"
_RELATION = re.compile(r"<=|>=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_VARIABLE = re.compile(_LETTER)
_MEMBERSHIP = re.compile(rf"({_LETTER})\s*\\in(?![A-Za-z])\s*")
_DISTANCE = re.compile(
    r"\|\s*([A-Za-z])\s*(?:([-+])\s*([^|]+))?\|\s*(<=|>=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>)(.+)"
)
_BUILDER = re.compile(rf"\\\{{\s*({_LETTER})\s*(\\in[^|:]*?)?(?:\\mid(?![A-Za-z])|\||:)(.+)\\\}}")
_EXCEPTION = re.compile(rf"({_LETTER})\s*\\ne(?![A-Za-z])(.+)")
_WITHOUT = re.compile(
    r"\\setminus(?![A-Za-z])|\\backslash(?![A-Za-z])|(?<=[)\]])\s*-\s*(?=\\\{)"
    r"|\\text\{\s*,?\s*(?:except(?: for)?|excluding|but not|but|other than|not equal to|not including)\s*"
    r"(?=[^{}]*\})(?P<inside>[^{}]*)\}"
)
_COMPARED = re.compile(
    r"\(-\\infty,\\infty\)\s*\\text\{\s*(?:strictly )?(?P<word>greater|more|larger|less|smaller) than"
    r"(?P<equal> or equal to)?\s*\}\s*(?P<bound>[^{}]+)"
)
_UNION = re.compile(r"\\text\{\s*or\s*\}|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|(?<![A-Za-z\\])or(?![A-Za-z])")
_BOTH = re.compile(
    r"\\text\{\s*and\s*\}|\\land(?![A-Za-z])|\\wedge(?![A-Za-z])|(?<![A-Za-z\\])and(?![A-Za-z])|,"
)


@dataclass(slots=True)
class RealSet:
    """A union of intervals and single points, without some points."""

    variable: str = ""
    """The variable of inequalities; "" if none is named."""
    intervals: list[Interval] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)


def real_set(text: str) -> RealSet | None:
    r"""Parse a subset of the real line.

    The forms are `x<3`, `1<x\le 2`, `x\le 3 or x\ge 5`, `|x-1|<2`, `x\ne 0`, `x>0, x\ne 1`, `[1,2)\cup(3,\infty)`,
    `x\in(1,2)`, `\{x\mid x<3\}` and `(-\infty,\infty)\setminus\{1\}`. Any other text gives None.
    """
    text = text.strip()
    if builder := _BUILDER.fullmatch(text):
        domain = builder[2] or ""
        condition = real_set(builder[3].strip())
        if (
            condition is None
            or condition.variable != builder[1]
            or (domain and _members(domain[3:].strip()) != [ALL])
        ):
            return None
        return RealSet("", condition.intervals, condition.points, condition.excluded)
    if compared := _COMPARED.fullmatch(text):
        relation = {"g": ">", "m": ">", "l": "<", "s": "<"}[compared["word"][0]]
        return real_set(f"x {relation}{'=' if compared['equal'] else ''} {compared['bound']}")
    without = _WITHOUT.split(text)
    if len(without) == 3:
        whole, taken = real_set(without[0].strip().rstrip(",")), _listed((without[1] or "") + without[2])
        if whole is None or taken is None:
            return None
        whole.excluded += taken
        return whole
    return _union_of_intervals(text) or _conditions(text)


def _members(text: str) -> list[Interval] | None:
    union = _union_of_intervals(text)
    return None if union is None or union.points else union.intervals


def _listed(text: str) -> list[str] | None:
    r"""Return the numbers of `\{1,2\}` or `1 and 2`."""
    text = re.sub(rf"\s*{_LETTER}\s*=\s*", " ", text.strip())
    bracketed = split_bracketed(text)
    body = ",".join(bracketed[1]) if bracketed is not None and bracketed[0] == r"\{" else _BOTH.sub(",", text)
    return _signed([part.strip() for part in split_top_level(body, ",") if part.strip()]) or None


def _signed(parts: list[str]) -> list[str]:
    r"""Replace `\pm 1` by both numbers."""
    signed: list[str] = []
    for part in parts:
        both = part.count(r"\pm") == 1
        signed += [re.sub(r"\\pm\s*", sign, part) for sign in ("", "-")] if both else [part]
    return signed


def _union_of_intervals(text: str) -> RealSet | None:
    membership = _MEMBERSHIP.match(text)
    body = text[membership.end() :] if membership else text
    clauses = split_top_level(body, ",")
    found = RealSet()
    for piece in re.split(r"\\cup(?![A-Za-z])", clauses[0]):
        interval, bracketed = _bracket_interval(piece), split_bracketed(piece)
        if interval is not None:
            found.intervals.append(interval)
        elif bracketed is not None and bracketed[0] == r"\{":
            found.points += bracketed[1]
        else:
            return None
    for clause in clauses[1:]:
        exception = _EXCEPTION.fullmatch(clause.strip())
        if exception is None or not membership or exception[1] != membership[1]:
            return None
        found.excluded += _signed([exception[2].strip()])
    return found if found.intervals else None


def _conditions(text: str) -> RealSet | None:
    """Parse inequalities: a union where "or" or a comma stands between them, with "and" at most one range."""
    if _MEMBERSHIP.match(text) or r"\cup" in text or r"\cap" in text:
        return None
    found, variables = RealSet(), set()
    pieces = [piece.strip() for piece in _UNION.split(text)]
    clauses = [[part.strip() for part in _BOTH.split(piece)] for piece in pieces]
    is_listed = len(pieces) == 1 and r"\text{" not in text and "and" not in text  # by commas alone
    for parts in clauses:
        exceptions = [_EXCEPTION.fullmatch(part) for part in parts]
        ranges = [part for part, exception in zip(parts, exceptions, strict=True) if exception is None]
        for exception in filter(None, exceptions):
            variables.add(exception[1])
            found.excluded += _signed([exception[2].strip()])
        if (
            any(exceptions)
            and found.excluded
            and ranges
            and all(not _RELATION.search(part) for part in ranges)
        ):
            found.excluded += _signed(ranges)  # x \ne 1, 2
            ranges = []
        parsed_ranges = [_inequality(part) or _two_sided(part) for part in ranges]
        if any(part is None for part in parsed_ranges):
            return None
        if len(ranges) > 1 and not is_listed:
            both = _intersection(parsed_ranges)
            if both is None:
                return None
            parsed_ranges = [both]
        for part in parsed_ranges:
            assert part is not None
            variables.add(part[0])
            found.intervals += part[1:]
    if len(variables) != 1 or (found.excluded and len(clauses) > 1 and found.intervals):
        return None
    found.variable = variables.pop()
    found.intervals = found.intervals or [ALL]
    return found


def _intersection(rays: Sequence[tuple[str, *tuple[Interval, ...]] | None]) -> tuple[str, Interval] | None:
    """Return what `x > a and x < b` have in common; None for other conditions."""
    found = [ray for ray in rays if ray is not None and len(ray) == 2]
    if len(rays) != 2 or len(found) != 2 or found[0][0] != found[1][0]:
        return None
    lower, upper = sorted((ray[1] for ray in found), key=lambda ray: ray[1] == r"-\infty")
    if lower[2] != r"\infty" or upper[1] != r"-\infty":
        return None
    return found[0][0], (lower[0], lower[1], upper[2], upper[3])


def _bracket_interval(text: str) -> Interval | None:
    bracketed = split_bracketed(text)
    if bracketed is None or len(bracketed[1]) != 2 or bracketed[0] == r"\{":
        return None
    opening, (low, high), closing = bracketed
    return opening, low, high, closing


def _inequality(text: str) -> tuple[str, Interval] | None:
    """Parse an inequality of one variable with one or two bounds."""
    relations = [
        relation[0].lstrip("\\").replace("<=", "le").replace(">=", "ge")
        for relation in _RELATION.finditer(text)
    ]
    parts = [part.strip() for part in _RELATION.split(text)]
    # 3 > x becomes x < 3.
    if len(relations) == 1 and _VARIABLE.fullmatch(parts[1]) and not _VARIABLE.fullmatch(parts[0]):
        parts, relations = [parts[1], parts[0]], [_FLIPPED[relations[0]]]
    if len(relations) == 1 and _VARIABLE.fullmatch(parts[0]) and parts[1]:
        if relations[0] in ("<", "le"):
            return parts[0], ("(", r"-\infty", parts[1], "]" if relations[0] == "le" else ")")
        return parts[0], ("[" if relations[0] == "ge" else "(", parts[1], r"\infty", ")")
    if len(relations) == 2 and _VARIABLE.fullmatch(parts[1]) and parts[0] and parts[2]:
        # 5 > x > 3 becomes 3 < x < 5.
        if all(relation in (">", "ge") for relation in relations):
            parts, relations = parts[::-1], [_FLIPPED[relation] for relation in reversed(relations)]
        if all(relation in ("<", "le") for relation in relations):
            opening = "[" if relations[0] == "le" else "("
            return parts[1], (opening, parts[0], parts[2], "]" if relations[1] == "le" else ")")
    return None


def _two_sided(text: str) -> tuple[str, Interval] | tuple[str, Interval, Interval] | None:
    r"""Parse a set that is symmetric about a point: `|x-1|<2`, `|x|>2`."""
    distance = _DISTANCE.fullmatch(text)
    if distance is None:
        return None
    variable, sign, offset, relation, radius = distance.groups()
    centre = f"{'-' if sign == '+' else ''}({offset})" if offset else "0"
    low, high = f"{centre}-({radius.strip()})", f"{centre}+({radius.strip()})"
    # The relation is one of <=, \le, >= and \ge, or a strict < or >.
    is_closed = "=" in relation or "e" in relation
    if "<" in relation or r"\le" in relation:
        return variable, ("[" if is_closed else "(", low, high, "]" if is_closed else ")")
    below: Interval = ("(", r"-\infty", low, "]" if is_closed else ")")
    return variable, below, ("[" if is_closed else "(", high, r"\infty", ")")


def merged(real: RealSet) -> list[tuple[bool, Any, Any, bool]] | None:
    """Return the maximal intervals as (is open below, lower end, upper end, is open above), from low to high.

    Overlapping intervals are joined and excluded points cut out, so that equal sets have equal lists. The result is
    None if an end is no real number.
    """
    import sympy

    union: Any = sympy.EmptySet
    for opening, low, high, closing in real.intervals:
        ends = number(parsed(low)), number(parsed(high))
        if ends[0] is None or ends[1] is None or ends[0] > ends[1]:
            return None
        union = union.union(sympy.Interval(*ends, opening == "(", closing == ")"))
    numbers = [[number(parsed(point)) for point in points] for points in (real.points, real.excluded)]
    if any(value is None or value.is_infinite for values in numbers for value in values):
        return None
    whole = union.union(sympy.FiniteSet(*numbers[0])) - sympy.FiniteSet(*numbers[1])
    parts = whole.args if isinstance(whole, sympy.Union) else (whole,)
    intervals = []
    for part in parts:
        if isinstance(part, sympy.FiniteSet):
            intervals += [(False, point, point, False) for point in part.args]
        elif isinstance(part, sympy.Interval):
            intervals.append((bool(part.left_open), part.start, part.end, bool(part.right_open)))
        else:
            return None
    return sorted(intervals, key=lambda interval: (interval[1], interval[2]))
