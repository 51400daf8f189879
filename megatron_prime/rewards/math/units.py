"""Reads values with units, and converts units of one dimension into each other.

Only real units, currencies and common counted things are units; any other word after a number may change its value
("5 million", "5 below zero"), so that a text with one is no quantity.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Dimensions = tuple[tuple[str, int], ...]
"""The powers of the base units, sorted by name."""

_METRIC = {
    # Symbol: (names, scale in base units, base units). The gram and not the kilogram takes prefixes.
    "m": ("meter metre", 1, "m"), "g": ("gram gramme", 1, "g"), "s": ("second", 1, "s"), "A": ("ampere amp", 1, "A"),
    "K": ("kelvin", 1, "K"), "mol": ("mole", 1, "mol"), "cd": ("candela", 1, "cd"), "L": ("liter litre", "0.001", "m3"),
    "Hz": ("hertz", 1, "s-1"), "N": ("newton", 1000, "g m s-2"), "J": ("joule", 1000, "g m2 s-2"),
    "W": ("watt", 1000, "g m2 s-3"), "Pa": ("pascal", 1000, "g m-1 s-2"), "C": ("coulomb", 1, "A s"),
    "V": ("volt", 1000, "g m2 s-3 A-1"), "ohm": ("ohm", 1000, "g m2 s-3 A-2"),
    "F": ("farad", "1/1000", "g-1 m-2 s4 A2"), "T": ("tesla", 1000, "g s-2 A-1"), "H": ("henry", 1000, "g m2 s-2 A-2"),
    "Wb": ("weber", 1000, "g m2 s-2 A-1"), "eV": ("electronvolt", "1.602176634e-16", "g m2 s-2"),
    "cal": ("calorie", 4184, "g m2 s-2"), "bar": ("bar", 10**8, "g m-1 s-2"), "B": ("byte", 8, "bit"),
    "bit": ("bit", 1, "bit"), "t": ("tonne", 10**6, "g"),
}  # fmt: skip
_PREFIXES = {
    "k": ("kilo", 3), "c": ("centi", -2), "m": ("milli", -3), "M": ("mega", 6), "G": ("giga", 9), "µ": ("micro", -6),
    "n": ("nano", -9), "p": ("pico", -12), "d": ("deci", -1), "h": ("hecto", 2), "T": ("tera", 12),
}  # fmt: skip
_OTHER = {
    # Spellings: (scale, base units). A name also has its plural.
    "min minute": (60, "s"), "h hr hour": (3600, "s"), "day": (86400, "s"), "week wk": (604800, "s"), "sec": (1, "s"),
    "month": (1, "month"), "year yr": (12, "month"), "decade": (120, "month"), "century": (1200, "month"),
    "in inch": ("0.0254", "m"), "ft foot": ("0.3048", "m"), "yd yard": ("0.9144", "m"), "mi mile": ("1609.344", "m"),
    "mph": ("0.44704", "m s-1"), "kmph kph": ("5/18", "m s-1"), "knot kn": ("463/900", "m s-1"),
    "angstrom": ("1e-10", "m"), "lightyear": (1, "lightyear"), "acre": ("4046.8564224", "m2"),
    "ha hectare": (10000, "m2"),
    "l": ("0.001", "m3"), "ml mL cc": ("1e-6", "m3"), "gal gallon": ("0.003785411784", "m3"),
    "qt quart": ("0.000946352946", "m3"), "pt pint": ("0.000473176473", "m3"), "cup": ("0.0002365882365", "m3"),
    "lb lbs pound": ("453.59237", "g"), "oz ounce": ("28.349523125", "g"), "ton": (1, "ton"), "kgs": (1000, "g"),
    "gm": (1, "g"), "u amu": (1, "amu"), "Kcal": (4184000, "g m2 s-2"), "kwh kWh": (3600000000, "g m2 s-2"),
    "Nm": (1000, "g m2 s-2"), "Ah": (3600, "A s"), "hp horsepower": (1, "hp"),
    "atm atmosphere": (101325000, "g m-1 s-2"),
    "mmHg torr": (1, "mmHg"), "rpm": (1, "rpm"), "dB decibel": (1, "dB"),
    "dollar usd USD buck": (100, "cent"), "cent penny pennies": (1, "cent"), "dime": (10, "cent"),
    "nickel": (5, "cent"),
    "euro EUR": (1, "euro"), "GBP": (1, "gbp"), "yuan RMB": (1, "yuan"), "yen": (1, "yen"),
    "rupee Rs rs INR": (1, "rupee"), "ruble rouble": (1, "ruble"), "peso": (1, "peso"),
    "celsius degC": (1, "celsius"), "fahrenheit degF": (1, "fahrenheit"), "rad radian": (1, "radian"),
    "deg degree °": (1, "degree"), "unit": (1, ""),
}  # fmt: skip
_COUNTED_NOUNS = (
    "adult angle animal ant apple arm arrangement asymptote athlete atom award bacteria bag ball balloon banana "
    "barrel basket battery bead bean bear bed bee bell bicycle bike bill bird bit block boat book bottle bowl "
    "box boy bracelet brick brother brownie bucket bulb burger bus butterfly button byte cake call can candidate "
    "candy car card carrot cat cell chair chapter character cherry chicken child children chip chocolate choice "
    "chord circle city class coin color column combination competitor consonant contestant cookie country cousin "
    "cow crayon cube cupcake customer cycle dancer daughter desk diagonal dice die digit dinner dish divisor "
    "doctor dog doll dolphin domino donut door doughnut dress drink driver duck edge egg electron element "
    "elephant employee engineer envelope eraser eye face factor family farmer fence finger fish flavor floor "
    "flower folder fork fraction friend frog fruit function game gift girl glass goal goat grape group guest "
    "gumball hamburger hand handshake hat head hexagon horse house insect instrument integer intersection island "
    "item jar jellybean key kid kite kitten knife lamp lap leg lemon lesson letter level light line lion loaf "
    "lock lollipop lot lunch magazine man marble mark marker match matchstick meal medal member men message "
    "molecule monkey motorcycle move movie muffin mug musician necklace neighbor newspaper note notebook number "
    "nut object onion option orange outcome owner pack package packet page paragraph parcel parent participant "
    "particle passenger path peach pear pebble pen pencil penguin pentagon people period permutation person "
    "phase photo picture pie piece pig pixel pizza plane plant plate player point pole polygon possibility post "
    "potato present prime prize problem proton pupil puppy puzzle quadrilateral question rabbit race rectangle "
    "region resident revolution ribbon ring robot rock room root rope rose rotation round route row ruler runner "
    "committee password code school palindrome configuration quadruple quadrilateral digit assignment "
    "sandwich scientist seat sector seed sequence set sheep ship shirt shoe shot sibling side sign sister slice "
    "snake sock soldier solution son song sphere spider spoon squares stage stair stamp state station step stick "
    "sticker stone story strawberry street string student subset sweet symbol table teacher team term test thing "
    "ticket tiger tile time token tomato toothpick tourist tournament town toy train tree triangle trip truck "
    "turkey turn turtle unit value vehicle verse vertex video visitor volume vote voter vowel way wheel win "
    "window woman women word worker zero"
)
_COUNTED = frozenset(_COUNTED_NOUNS.split())
_ADJECTIVES = (
    r"(?:(?:different|distinct|possible|valid|whole|full|ordered|unique|positive|real|lattice"
    r"|(?:two|three|four|five|six|\d)-(?:digit|letter|element|person))\s+)+"
)
_PHRASES = (
    (
        re.compile(
            r"\\degree\s*C(?![A-Za-z])|\\degree\s*\\text\{\s*C\s*\}|degrees?\s+[Cc](?:elsius)?(?![a-z])"
        ),
        "celsius",
    ),
    (
        re.compile(
            r"\\degree\s*F(?![A-Za-z])|\\degree\s*\\text\{\s*F\s*\}|degrees?\s+[Ff](?:ahrenheit)?(?![a-z])"
        ),
        "fahrenheit",
    ),
    (re.compile(r"\\text\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\degree(?![A-Za-z])"), " deg "),
    (re.compile(r"(?<=[kMmµ]) \s*\\Omega(?![A-Za-z])"), "ohm"),
    (re.compile(r"\\(?:Omega|ohm)(?![A-Za-z])"), " ohm "),
    (re.compile(r"\\mu\s*(?=[A-Za-z])|μ"), "µ"),
    (re.compile(r"\\cdot(?![A-Za-z])|\\times(?![A-Za-z])|\*|(?<=[A-Za-z])-(?=[A-Za-z])"), " * "),
    (re.compile(r"\bordered\s+(?:pair|triple)s?\b"), "solutions"),
    (re.compile(r"\s+in\s+total\s*$|\s+(?:in\s+all|altogether)\s*$|^\s*" + _ADJECTIVES), " "),
    (re.compile(r"(?<=years)\s+old\s*$|(?<=year)\s+old\s*$"), ""),
    (re.compile(r"light[\s*]+years?"), "lightyear"),
    (re.compile(r"(?<=[A-Za-z])\.(?![A-Za-z])"), " "),
    (re.compile(r"\bper\b"), "/"),
    (re.compile(r"\b(?:square|sq)\s+([A-Za-z]+)"), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu)\s+([A-Za-z]+)"), r"\1^3"),
    (re.compile(r"\bsquared\b"), "^2"),
    (re.compile(r"\bcubed\b"), "^3"),
)
_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-zµ°]+)|(?P<power>\^\s*(?:\{\s*-?\d\s*\}|-?\d))|(?P<sign>[/*()]))\s*"
)
_FRACTION = re.compile(r"\\frac\{((?:[^{}]|\{[^{}]*\})*)\}\{((?:[^{}]|\{[^{}]*\})*)\}")
_NUMBER = r"[-+]?(?:\d[\d.,]*|\.\d+)(?:\\frac\{\d+\}\{\d+\})?|[-+]?\\frac\{\d+\}\{\d+\}"
_PIECE = re.compile(
    rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>\\text\{{[^{{}}]*\}}|(?<=\s)[A-Za-z]+)\s*(?:,|\\text\{{\s*and\s*\}}|and\b)?"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as a multiple of base units."""

    scale: Fraction
    dimensions: Dimensions


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and its unit, which is None if there is none. `name` is the unit as it is written."""

    value: str
    unit: Unit | None
    name: str = ""


MAX_FACTORS = 8
"""Limit on the number of units in a product; a longer one is none."""
_BARE_LETTERS = "msghLlJNWVK"
_UPRIGHT_LETTERS = "msghLlJNWV"
PERCENT = Unit(Fraction(1, 100), (("percent", 1),))
DEGREE = Unit(Fraction(1), (("degree", 1),))
RADIAN = Unit(Fraction(1), (("radian", 1),))


def split_unit(text: str, *, is_asked_for: bool = False) -> Quantity:
    r"""Split `5\text{ cm}`, `5 cm`, `5\frac{\text{m}}{\text{s}}`, `50\%`, `90\degree` or `101_2` into value and unit.

    Any other text is a value without a unit. `is_asked_for` holds for ground truths, and for answers if the ground
    truth has a unit: then every word is a unit, because authors count things that this list does not have, and so is a
    letter after a blank. Otherwise `5 m` may be a product, and `5\text{K}` five thousand.
    """
    if percent := re.fullmatch(
        r"(.*[\d})])\s*(?:\\?%|\\text\{\s*(?:%|percent|per cent)\s*\}|\s+percent)", text
    ):
        return Quantity(percent[1].strip(), PERCENT, "%")
    if (whole := _numeral_with_base(text) or sum_of_pieces(text)) is not None:
        return whole
    for start in _starts(text):
        value, name = text[:start].strip(), text[start:].strip()
        value = re.sub(r"\\cdot$|\\times$", "", value).strip()
        if not value or r"\text{" in value or value[-1] in "+-*/^_,(:=" or _is_variable(name, is_asked_for):
            return Quantity(text, None)
        if (unit := unit_named(name)) is not None:
            return Quantity(value, unit, name)
        if is_asked_for and re.fullmatch(r"\\text\{(?!.*\b(?:or|and|not)\b)[A-Za-z .'-]*\}", name):
            return Quantity(value, Unit(Fraction(1), ((_singular(name[6:-1].strip().lower()), 1),)), name)
    return Quantity(text, None)


def _numeral_with_base(text: str) -> Quantity | None:
    """Parse 101_2; x_1 is a variable with an index, and 7_2 is neither."""
    numeral = re.fullmatch(r"(-?[\dA-F]+)_\{?(\d{1,2})\}?", text)
    if numeral is None or any(int(digit, 16) >= int(numeral[2]) for digit in numeral[1].lstrip("-")):
        return None
    return Quantity(numeral[1], Unit(Fraction(1), ((f"base {numeral[2]}", 1),)), numeral[2])


def _is_variable(name: str, is_asked_for: bool) -> bool:
    """Return True if a single letter after a number is to be taken as a variable or as a multiple."""
    letter = re.fullmatch(r"(\\text\{\s*)?([A-Za-z])(?:\s*\})?(?:\^.*)?", name)
    if letter is None:
        return False
    if letter[1]:
        return not is_asked_for and letter[2] not in _UPRIGHT_LETTERS
    return not is_asked_for or letter[2] not in _BARE_LETTERS


def _starts(text: str) -> list[int]:
    r"""Return the indices where a unit may begin: `\text`, `\degree`, a fraction of units or a word after a number."""
    marks = re.finditer(
        r"\\frac\{\s*\\text\{|\\text\{|\\degree|\\Omega|(?<=[\d}) ])(?=[A-Za-zµ]{2})"
        r"|(?<=[\d})]\s)(?=[A-Za-z])|\\mu\s*\\text\{",
        text,
    )
    starts = []
    for mark in marks:
        before = text[: mark.start()]
        if before.count("{") - before.count(r"\{") == before.count("}") - before.count(r"\}"):
            starts.append(mark.start())
    return starts[:2]


def sum_of_pieces(text: str) -> Quantity | None:
    r"""Return the sum of `1\text{ hour }20\text{ minutes}` or `5\text{ ft }6\text{ in}`, None for any other text."""
    pieces, end = [], 0
    while match := _PIECE.match(text, end):
        pieces.append((match["number"], unit_named(re.sub(r",?(?: and)?\s*(?=\}?$)", "", match["unit"]))))
        end = match.end()
    if end != len(text) or len(pieces) < 2:
        return None
    units = [unit for _, unit in pieces if unit is not None and unit.dimensions]
    if len(units) < len(pieces) or len({unit.dimensions for unit in units}) > 1:
        return None
    # In the order of the sizes of their units: "20 minutes 1 hour" is no usual notation.
    if [unit.scale for unit in units] != sorted({unit.scale for unit in units}, reverse=True):
        return None
    total = "+".join(
        f"({number})*({unit.scale / units[-1].scale})"
        for (number, _), unit in zip(pieces, units, strict=True)
    )
    return Quantity(total, units[-1], pieces[-1][0])


@lru_cache(maxsize=256)
def unit_named(name: str) -> Unit | None:
    r"""Return the unit of a text such as `\text{km}/\text{h}`, `square feet` or `\text{ meters per second squared}`."""
    name = _FRACTION.sub(r" (\1) / (\2) ", name)
    for pattern, replacement in _PHRASES:
        name = pattern.sub(replacement, name)
    tokens, end = [], 0
    while end < len(name):
        match = _TOKEN.match(name, end)
        if match is None:
            return None
        tokens.append((match.lastgroup, match[match.lastgroup or 0]))
        end = match.end()
    factors = _factors(tokens)
    if not factors or len(factors) > MAX_FACTORS:
        return None
    scale, dimensions = Fraction(1), {}
    for unit, power in factors:
        scale *= unit.scale**power
        for base, own in unit.dimensions:
            dimensions[base] = dimensions.get(base, 0) + own * power
    return Unit(scale, tuple(sorted((base, power) for base, power in dimensions.items() if power)))


def _factors(tokens: list[tuple[str | None, str]]) -> list[tuple[Unit, int]] | None:
    """Return the units and their powers, or None if the tokens are no product or quotient of units."""
    factors: list[tuple[Unit, int]] = []
    signs = [1]  # of each open bracket
    sign, is_open = 1, True  # whether a unit must follow
    for kind, token in tokens:
        if kind == "word":
            unit = (
                _UNITS.get(token)
                or (_UNITS.get(token.lower()) if len(token) > 1 else None)
                or _counted(token)
            )
            if unit is None:
                return None
            factors.append((unit, signs[-1] * sign))
            sign, is_open = 1, False
        elif token == "(":
            signs.append(signs[-1] * sign)
            sign, is_open = 1, True
        elif is_open and not (token == "/" and not factors):
            return None
        elif kind == "power":
            unit, power = factors[-1]
            factors[-1] = (unit, power * int(re.sub(r"[^-\d]", "", token)))
        elif token == ")":
            signs.pop()
            if not signs:
                return None
        else:
            sign, is_open = (-1 if token == "/" else 1), True
    return factors if len(signs) == 1 and not is_open else None


def _counted(word: str) -> Unit | None:
    word = word.lower()
    for noun in (word, _singular(word)):
        if noun in _COUNTED:
            return Unit(Fraction(1), ((_singular(noun), 1),))
    return None


def _singular(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    for ending, singular in (
        ("ies", "y"),
        ("ves", "f"),
        ("oes", "o"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("xes", "x"),
        ("sses", "ss"),
    ):
        if noun.endswith(ending) and noun[: -len(ending)] + singular in _COUNTED:
            return noun[: -len(ending)] + singular
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


_IRREGULAR = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "vertices": "vertex", "mice": "mouse",
    "cookies": "cookie", "pies": "pie", "ties": "tie", "movies": "movie", "knives": "knife", "dice": "die",
    "geese": "goose", "teeth": "tooth", "brownies": "brownie",
}  # fmt: skip


def _table() -> Mapping[str, Unit]:
    table: dict[str, Unit] = {}
    for symbol, (names, scale, base) in _METRIC.items():
        for prefix, (long_prefix, exponent) in {"": ("", 0), **_PREFIXES}.items():
            unit = Unit(Fraction(scale) * Fraction(10) ** exponent, _dimensions(base))
            # The day and the minute are shorter than the deci- and milli-units that nobody uses.
            table.setdefault(prefix + symbol, unit)
            for name in names.split():
                table[long_prefix + name] = table[long_prefix + name + "s"] = unit
    for spellings, (scale, base) in _OTHER.items():
        for name in spellings.split():
            plural = {"inch": "inches", "foot": "feet", "century": "centuries", "hertz": "hertz"}.get(
                name, name + "s"
            )
            table[name] = table[plural] = Unit(Fraction(scale), _dimensions(base))
    return table


def _dimensions(base: str) -> Dimensions:
    parts = [re.fullmatch(r"([A-Za-z]+)(-?\d+)?", part) for part in base.split()]
    return tuple(sorted((part[1], int(part[2] or 1)) for part in parts if part is not None))


_UNITS = _table()
