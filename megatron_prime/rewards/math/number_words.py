"""Reads numbers that are written in words: `twenty-one`, `negative five`, `one half`, `5 million`, `3 dozen`."""

import re

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * (index + 2) for index, word in enumerate(_TENS.split())
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLIERS = _SCALES | {"hundred": 100, "dozen": 12}
_ORDINALS = (
    "half third quarter fourth fifth sixth seventh eighth ninth tenth eleventh twelfth hundredth thousandth "
    "millionth"
)
_DENOMINATORS = dict(
    zip(_ORDINALS.split(), (2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 100, 1000, 10**6), strict=True)
)
_PARTS = {word: value for name, value in _DENOMINATORS.items() for word in (name, name + "s")} | {"halves": 2}
_SIGNS = {"minus", "negative"}

_MULTIPLIED = re.compile(
    rf"(?P<number>(?<![\d.,])(?:\d[\d,]*(?:\.\d+)?(?:\\frac\{{\d+\}}\{{\d+\}})?|\.\d+|\\frac\{{\d+\}}\{{\d+\}}))\s*"
    rf"(?:\\text\{{\s*(?P<word>{'|'.join([*_MULTIPLIERS, *_PARTS])})(?![A-Za-z])(?P<rest>[^{{}}]*)\}}"
    rf"|(?P<bare>{'|'.join([*_MULTIPLIERS, *_PARTS])})(?![A-Za-z]))"
)


def number_in_words(words: str) -> str | None:
    """Return the numeral of a number in words, or None for any other text."""
    tokens = re.split(r"[\s-]+", words.lower().strip())
    sign = "-" if tokens[0] in _SIGNS else ""
    tokens = tokens[bool(sign) :] or [""]
    if "point" in tokens:
        place = tokens.index("point")
        whole, digits = _whole(tokens[:place]), [_UNITS.get(token, 10) for token in tokens[place + 1 :]]
        decimals = "".join(map(str, digits)) if digits and max(digits) < 10 else ""
        return None if whole is None or not decimals else f"{sign}{whole}.{decimals}"
    if tokens[-1] in _PARTS and "and" in tokens:
        # "two and a half", as a mixed number.
        place = len(tokens) - 1 - tokens[::-1].index("and")
        whole, part = _whole(tokens[:place]), number_in_words(" ".join(tokens[place + 1 :]))
        return None if whole is None or part is None else f"{sign}{whole}{part}"
    tokens = ["one" if token in ("a", "an") else token for token in tokens if token != "and"]
    if not tokens or words.strip().lower() in ("a", "an"):
        return None
    if tokens[-1] == "dozen":
        dozens = _whole(tokens[:-1] or ["one"])
        return None if dozens is None else f"{sign}{12 * dozens}"
    if tokens[-1] in _PARTS:
        # "half" alone, "a half" and "one half" are the same; "third" alone is a place in an order.
        numerator = _whole(tokens[:-1]) if len(tokens) > 1 else 1 if tokens[-1] == "half" else None
        return None if numerator is None else rf"{sign}\frac{{{numerator}}}{{{_PARTS[tokens[-1]]}}}"
    number = _whole(tokens)
    return None if number is None else f"{sign}{number}"


def _whole(tokens: list[str]) -> int | None:
    """Return the whole number of words such as `two million three hundred five`, largest scale first."""
    if not tokens:
        return None
    total, group, scale, previous = 0, 0, 10**15, 1000
    for token in tokens:
        if token in _UNITS and (value := _UNITS[token]) < previous and (previous != 100 or value):
            # After a multiple of ten only a digit may follow, after a smaller number nothing.
            group, previous = group + value, 10 if value >= 20 else 0
        elif token == "hundred" and 0 < group < 10:
            group, previous = group * 100, 100
        elif token in _SCALES and group and _SCALES[token] < scale:
            total, group, scale, previous = total + group * _SCALES[token], 0, _SCALES[token], 1000
        else:
            return None
    return total + group


def expand_multipliers(text: str) -> str:
    """Write `5 million` as a multiple of a power of ten, `3 dozen` as a product and `9 halves` as a fraction."""
    return _MULTIPLIED.sub(_expanded, text)


def _expanded(match: re.Match[str]) -> str:
    number, word = match["number"], match["word"] or match["bare"]
    rest = rf"\text{{{match['rest'].strip()}}}" if (match["rest"] or "").strip() else ""
    if word in _PARTS:
        # Only of a whole number: "2 thirds" is a fraction, "1.5 thirds" is no usual notation.
        return rf"\frac{{{number}}}{{{_PARTS[word]}}}{rest}" if number.isdigit() else match[0]
    if word == "dozen":
        return rf"{number}\times 12{rest}"
    return rf"{number}\times 10^{{{len(str(_MULTIPLIERS[word])) - 1}}}{rest}"
