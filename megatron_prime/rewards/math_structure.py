"""Taking an answer apart: alternatives, sets, tuples, intervals, inequalities, units."""

import re
from dataclasses import dataclass

Interval = tuple[str, str, str, str]
"""Opening bracket, lower end, upper end, closing bracket."""

_OR = re.compile(r"\\text\{\s*(?:or|and)\s*\}|\\lor(?![A-Za-z])|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
_RELATION = re.compile(r"<=|>=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda)")
_MEMBERSHIP = re.compile(r"(?:[A-Za-z]|\\theta)\s*\\in(?![A-Za-z])\s*")
_ASSIGNMENT = re.compile(
    r"([A-Za-z](?:_\{?\w\}?)?(?:\([A-Za-z]\))?|\\(?:theta|alpha|beta|lambda))\s*=(?!=)\s*"
)

_UNIT_NAMES = {
    "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "km": "km kilometer kilometers kilometre kilometres",
    "m": "m meter meters metre metres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "mi": "mi mile miles",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "s": "s sec second seconds",
    "min": "min minute minutes",
    "h": "h hr hour hours",
    "day": "day days",
    "year": "year years",
    "mph": "mph",
    "usd": "dollar dollars usd",
    "cent": "cent cents",
    "%": "% percent",
    "deg": "degree degrees deg",
    "l": "l L liter liters litre litres",
    "unit": "unit units",
}
_UNITS = {spelling: unit for unit, spellings in _UNIT_NAMES.items() for spelling in spellings.split()}
_UNIT = re.compile(
    r"(?P<value>.*[\d})])\s*(?:\\text\{(?P<text>[^{}]*)\}(?P<power>\^\{?[23]\}?)?|(?P<percent>\\?%)|(?P<degree>\\degree)"
    r"|(?<=\s)(?P<bare>[A-Za-z]+)(?P<bare_power>\^\{?[23]\}?)?|_\{?(?P<base>\d{1,2})\}?)\s*"
)

_UNIT_WORDS = re.compile(r"(?!.*\b(?:or|and|not)\b)[A-Za-z .°/'-]*")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and its unit; "" where there is none."""

    value: str
    unit: str


def split_unit(text: str) -> Quantity:
    r"""`5\text{ cm}`, `5 cm`, `50\%`, `90\degree`, `101_2` apart; anything else is a value without a unit."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return Quantity(text, "")
    value = match["value"].strip()
    if match["percent"]:
        return Quantity(value, "%")
    if match["degree"]:
        return Quantity(value, "deg")
    if match["base"]:
        # x_1 is a variable, 101_2 a numeral
        return (
            Quantity(value, f"base {match['base']}")
            if re.fullmatch(r"-?[\dA-F]+", value)
            else Quantity(text, "")
        )
    name = (match["text"] or match["bare"] or "").strip().rstrip(".")
    if (match["bare"] and name not in _UNITS) or not _UNIT_WORDS.fullmatch(name):
        return Quantity(text, "")
    power = re.sub(r"\D", "", match["power"] or match["bare_power"] or "")
    return Quantity(value, _UNITS.get(name, name.lower()) + power)


def split_items(text: str) -> list[str]:
    r"""Alternatives or parts at top level, separated by commas, semicolons, "or", "and"; `\pm a` is two."""
    items: list[str] = []
    for part in _split_top_level(_OR.sub(",", text), ",;"):
        item = part.strip()
        if not item:
            continue
        if item.count(r"\pm") == 1:
            items += [item.replace(r"\pm", "+").lstrip("+ "), item.replace(r"\pm", "-")]
        else:
            items.append(item)
    return items


def split_bracketed(text: str) -> tuple[str, list[str], str] | None:
    r"""(opening, parts, closing) when one pair of brackets `( [ \{` holds all of `text`; None otherwise."""
    text = text.strip()
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if opening not in ("(", "[", r"\{") or closing not in (")", "]", r"\}") or len(text) < 3:
        return None
    if (opening == r"\{") != (closing == r"\}"):
        return None
    inner = text[len(opening) : -len(closing)]
    parts = _split_top_level(inner, ",;")
    if _depth_dips(inner):
        return None
    return opening, [part.strip() for part in parts], closing


def strip_assignment(text: str) -> tuple[str, str]:
    """(`x`, `5`) of `x = 5`; ("", text) when there is no variable alone on the left or more than one `=`."""
    match = _ASSIGNMENT.match(text)
    if match is None or "=" in text[match.end() :]:
        return "", text
    return match[1], text[match.end() :].strip()


def real_set(text: str) -> tuple[str, list[Interval]] | None:
    r"""A subset of the line as (variable or "", intervals), from interval notation or inequalities.

    `x<3`, `1<x\le 2`, `x\le 3 or x\ge 5`, `[1,2)\cup(3,\infty)`, `x\in(1,2)`; None for anything else.
    """
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
        parsed = _inequality(piece.strip())
        if parsed is None:
            return None
        variables.add(parsed[0])
        intervals.append(parsed[1])
    return (variables.pop(), intervals) if len(variables) == 1 else None


def _bracket_interval(text: str) -> Interval | None:
    bracketed = split_bracketed(text)
    if bracketed is None or len(bracketed[1]) != 2 or bracketed[0] == r"\{":
        return None
    opening, (low, high), closing = bracketed
    return opening, low, high, closing


def _inequality(text: str) -> tuple[str, Interval] | None:
    """One variable against one or two bounds."""
    relations = [
        relation[0].lstrip("\\").replace("<=", "le").replace(">=", "ge")
        for relation in _RELATION.finditer(text)
    ]
    parts = [part.strip() for part in _RELATION.split(text)]
    if len(relations) == 1 and _VARIABLE.fullmatch(parts[1]) and not _VARIABLE.fullmatch(parts[0]):
        parts, relations = [parts[1], parts[0]], [_FLIPPED[relations[0]]]
    if len(relations) == 1 and _VARIABLE.fullmatch(parts[0]) and parts[1]:
        if relations[0] in ("<", "le"):
            return parts[0], ("(", r"-\infty", parts[1], "]" if relations[0] == "le" else ")")
        return parts[0], ("[" if relations[0] == "ge" else "(", parts[1], r"\infty", ")")
    if len(relations) == 2 and _VARIABLE.fullmatch(parts[1]) and parts[0] and parts[2]:
        if all(relation in (">", "ge") for relation in relations):
            parts, relations = parts[::-1], [_FLIPPED[relation] for relation in reversed(relations)]
        if all(relation in ("<", "le") for relation in relations):
            opening = "[" if relations[0] == "le" else "("
            return parts[1], (opening, parts[0], parts[2], "]" if relations[1] == "le" else ")")
    return None


def _split_top_level(text: str, separators: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth <= 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _depth_dips(text: str) -> bool:
    r"""Whether a bracket closes that was not opened inside: (1,2)\cup(3,4) is not one pair."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return True
    return False
