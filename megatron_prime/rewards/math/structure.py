"""Splits an answer into its parts: alternatives, sets, tuples, and values with units."""

import re
from dataclasses import dataclass

_OR = re.compile(r"\\text\{\s*(?:or|and)\s*\}|\\lor(?![A-Za-z])|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")

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
_RATES = {"mi/h": "mph", "mi/hour": "mph"}
_POWERS = {"square": "2", "sq": "2", "cubic": "3"}
_UNIT = re.compile(
    r"(?P<value>.*[\d})]|.*\\pi)\s*(?:\\text\{(?P<text>[^{}]*)\}(?P<power>\^\{?[23]\}?)?|(?P<percent>\\?%)|(?P<degree>\\degree)"
    r"|(?<=\s)(?P<bare>[A-Za-z]+)(?P<bare_power>\^\{?[23]\}?)?|_\{?(?P<base>\d{1,2})\}?)\s*"
)

_UNIT_WORDS = re.compile(r"(?!.*\b(?:or|and|not)\b)[A-Za-z .°/'-]*")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and its unit; the unit is "" if there is none."""

    value: str
    unit: str


def split_unit(text: str) -> Quantity:
    r"""Split `5\text{ cm}`, `5 cm`, `50\%`, `90\degree` or `101_2` into value and unit.

    Any other text is a value without a unit.
    """
    match = _UNIT.fullmatch(text)
    if match is None:
        return Quantity(text, "")
    value = match["value"].strip()
    if match["percent"]:
        return Quantity(value, "%")
    if match["degree"]:
        return Quantity(value, "deg")
    if match["base"]:
        # x_1 is a variable with an index, 101_2 a numeral with a base.
        return (
            Quantity(value, f"base {match['base']}")
            if re.fullmatch(r"-?[\dA-F]+", value)
            else Quantity(text, "")
        )
    name = (match["text"] or match["bare"] or "").strip().rstrip(".")
    if (match["bare"] and name not in _UNITS) or not _UNIT_WORDS.fullmatch(name):
        return Quantity(text, "")
    power = re.sub(r"\D", "", match["power"] or match["bare_power"] or "")
    return Quantity(value, _unit_name(name) + power)


def _unit_name(name: str) -> str:
    """Return the short name of a unit: cm2 for `square centimeters`, mph for `miles per hour`."""
    first, _, rest = name.partition(" ")
    if first.rstrip(".").lower() in _POWERS and rest:
        return _unit_name(rest) + _POWERS[first.rstrip(".").lower()]
    rate = re.split(r"\s*/\s*|\s+per\s+", name)
    joined = "/".join(_UNITS.get(part, part.lower()) for part in rate)
    return _RATES.get(joined, joined)


def split_items(text: str) -> list[str]:
    r"""Split at top level at commas, semicolons, "or" and "and"; `\pm a` yields two items."""
    items: list[str] = []
    for part in split_top_level(_OR.sub(",", text), ",;"):
        item = part.strip()
        if not item:
            continue
        # With two signs it would be unclear whether they vary together.
        if item.count(r"\pm") == 1:
            items += [item.replace(r"\pm", "+").lstrip("+ "), item.replace(r"\pm", "-")]
        else:
            items.append(item)
    return items


def split_bracketed(text: str) -> tuple[str, list[str], str] | None:
    r"""Return (opening, parts, closing) if a pair of `(`, `[` or `\{` brackets encloses all of `text`, else None."""
    text = text.strip()
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if opening not in ("(", "[", r"\{") or closing not in (")", "]", r"\}") or len(text) < 3:
        return None
    if (opening == r"\{") != (closing == r"\}"):
        return None
    inner = text[len(opening) : -len(closing)]
    parts = split_top_level(inner, ",;")
    if _depth_dips(inner):
        return None
    return opening, [part.strip() for part in parts], closing


def split_top_level(text: str, separators: str) -> list[str]:
    """Split at separators that are outside all brackets; parts keep their white space."""
    # All kinds of brackets count alike, because the brackets of [1, 2) do not match by kind.
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
    r"""Return True if `text` closes a bracket that it did not open, as between the outer brackets of (1,2)\cup(3,4)."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return True
    return False
