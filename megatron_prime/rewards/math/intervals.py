"""Parses subsets of the real line from interval notation or inequalities."""

import re

from megatron_prime.rewards.math.structure import split_bracketed

Interval = tuple[str, str, str, str]
"""An interval as opening bracket, lower end, upper end, closing bracket."""

_RELATION = re.compile(r"<=|>=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda)")
_MEMBERSHIP = re.compile(r"(?:[A-Za-z]|\\theta)\s*\\in(?![A-Za-z])\s*")
_DISTANCE = re.compile(
    r"\|\s*([A-Za-z])\s*(?:([-+])\s*([^|]+))?\|\s*(<=|>=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>)(.+)"
)
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in[^|:]*)?(?:\\mid(?![A-Za-z])|\||:)(.+)\\\}")
_EXCEPTION = re.compile(r"([A-Za-z])\s*\\ne(?![A-Za-z])(.+)")


def real_set(text: str) -> tuple[str, list[Interval]] | None:
    r"""Parse a subset of the real line.

    The forms are `x<3`, `1<x\le 2`, `x\le 3 or x\ge 5`, `|x-1|<2`, `x\ne 0`, `[1,2)\cup(3,\infty)`, `x\in(1,2)` and
    `\{x\mid x<3\}`.

    Returns:
        The variable ("" if none is named) and the intervals, or None for any other text.
    """
    if builder := _BUILDER.fullmatch(text):
        condition = real_set(builder[2])
        return None if condition is None or condition[0] != builder[1] else ("", condition[1])
    variables: set[str] = set()
    intervals: list[Interval] = []
    membership = _MEMBERSHIP.match(text)
    body = text[membership.end() :] if membership else text
    for piece in re.split(r"\\cup(?![A-Za-z])", body):
        interval = _bracket_interval(piece)
        if interval is None:
            break
        intervals.append(interval)
    else:
        return "", intervals
    if membership or r"\cup" in text:
        return None
    for piece in re.split(r"\\text\{\s*or\s*\}|\\lor(?![A-Za-z])|(?<![A-Za-z\\])or(?![A-Za-z])|,", text):
        parsed = _inequality(piece.strip()) or _two_sided(piece.strip())
        if parsed is None:
            return None
        variables.add(parsed[0])
        intervals += parsed[1:]
    return (variables.pop(), intervals) if len(variables) == 1 else None


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
    r"""Parse a set that is symmetric about a point: `|x-1|<2`, `|x|>2`, `x\ne 3`."""
    if exception := _EXCEPTION.fullmatch(text):
        point = exception[2].strip()
        return exception[1], ("(", r"-\infty", point, ")"), ("(", point, r"\infty", ")")
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
