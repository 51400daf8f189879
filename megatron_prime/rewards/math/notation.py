r"""Converts an answer to one notation: Unicode to LaTeX, no spacing or decoration, decimals as exact fractions."""

# ruff: noqa: RUF001 - this file is about look-alike characters
import re
import unicodedata
from fractions import Fraction

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "°": r"^{\circ}",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ℝ": r"\mathbb{R}", "′": "'", "∣": "|",
    "｛": r"\{", "｝": r"\}", "…": r"\ldots ",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def _numeral_base(index: re.Match[str]) -> str:
    base = _BASES.get(index[1].lower())
    return index[0] if base is None else f"_{{{base}}}"


# The order matters: commands for fonts and upright text are unified before the patterns that look into \text{},
# spacing between groups of three digits is removed before other spacing becomes blanks, and money before the dollar
# signs of math mode.
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|bf|rm|it)(?![A-Za-z])\.?", ""),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        # Euler's number and the imaginary unit in upright type.
        (r"\\mathrm\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\[lc]?dots(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        # A single character class between the braces, without \s* beside it: a blank that can be matched in three
        # ways would make the time cubic.
        (
            r"\\(?:text|mathrm|mathbf|textbf|mbox|textrm|textit|bm|boldsymbol)\s*\{([^{}]*)\}",
            lambda match: rf"\text{{{match[1].strip()}}}",
        ),
        (
            r"_\s*\{?\s*\\text\{(\w+)\}\s*\}?",
            _numeral_base,
        ),
        (r"\\mathbb\s*\{?\s*R\s*\}?", r"(-\\infty,\\infty)"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", r"\\degree "),
        (r"\\degrees?(?![A-Za-z])\s*", r"\\degree "),
        (
            r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d+(?:\.\d+)?)\s*\\degree\s*",
            r"\1(\2\\cdot\\pi/180)",
        ),
        (r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)+(?=\d{3}(?!\d))", ""),
        # An escaped dollar sign is money. Two backslashes end a row of a matrix and do not escape what follows.
        (r"\\\$\s*(\d[\d,]*(?:\.\d+)?)", lambda match: match[1].replace(",", "") + r"\text{ dollars}"),
        (r"(?<!\\)\\(?:[,!;: ]|quad|qquad)|~", " "),
        (r"\\\$|\$|\\\(|\\\)|\\\[|\\\]", " "),
        (r"\\[lr]brace(?![A-Za-z])", lambda match: "\\{" if match[0][1] == "l" else "\\}"),
        # Mantissa and exponent, but neither Euler's number (2e) nor an identifier (x1e5).
        (r"(?<![A-Za-z\d.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,3})(?![\d.A-Za-z])", r"\1\\times 10^{\2}"),
        (r"(?<!\d)(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),
        (r"\*\*", "^"),
        (r"\s+", " "),
    )
)
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.]*\.)|(?<=[A-Za-z}])(\d+)\.(\d+)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d{1,50})\}?")
_WORD = re.compile(r"\\text\{([^{}]*)\}|([A-Za-z][A-Za-z .'-]*[A-Za-z]|[A-Za-z])")
_CHOICE = re.compile(r"\(?\s*(?P<closed>[A-J])\s*[).:](?P<rest>.*)|(?P<alone>[A-Ja-j])", flags=re.DOTALL)
_ARTICLE = re.compile(r"(?:a|an|the) (?=\w\w)")

NO_SOLUTION = {
    "no solution",
    "no solutions",
    "none",
    "empty set",
    "no real solution",
    "no real solutions",
    "null set",
}


def normalise(text: str) -> str:
    """Convert an answer to the notation that comparisons use. Idempotent up to spacing; never raises."""
    text = _from_unicode(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).strip()
    text = text.removesuffix(".").rstrip()
    if _THOUSANDS.fullmatch(text):
        text = re.sub(r"[, ]", "", text)
    if text.replace(" ", "") == r"\{\}" or words(text) in NO_SOLUTION:
        return r"\emptyset"
    return text


def squeezed(text: str) -> str:
    """Return the text without white space, for comparison as text."""
    return re.sub(r"\s+", "", text)


def unwrapped(text: str) -> str:
    r"""Return the text without white space and `\text` commands: `\text{7:30 PM}` equals `7:30\text{ PM}`."""
    return squeezed(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))


def words(text: str) -> str | None:
    r"""Return the words of `text` in lower case, or None if it contains mathematics.

    `\text{East}`, `East` and `\text{(C)}` are words; `x`, `ab` (a product) and `2 east` are not. Words must not be
    compared as mathematics: "east" would be the product of its letters, which equals "seat".
    """
    match = _WORD.fullmatch(text.strip())
    if match is None:
        choice = re.fullmatch(r"\(?\s*([A-Z])\s*\)?", text.strip())
        return choice[1].lower() if choice and "(" in text else None
    if match[1] is not None:
        return _ARTICLE.sub("", re.sub(r"\s+", " ", match[1].strip().strip("().")).lower(), count=1)
    letters = match[2]
    return (
        _ARTICLE.sub("", re.sub(r"\s+", " ", letters).lower(), count=1)
        if max(map(len, letters.split())) > 2
        else None
    )


def chosen_letter(text: str) -> str | None:
    r"""Return the letter of the multiple-choice option that `text` names, in lower case.

    The forms are `A`, `(A)`, `A) 12`, `\text{(A) }12` and `Option A`. The result is None if the text names no option or
    more than one.
    """
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1 ", text).strip()
    plain = re.sub(r"^(?:option|choice|answer)\b:?\s*", "", plain, flags=re.IGNORECASE)
    match = _CHOICE.fullmatch(plain)
    if match is None or re.search(r"\b(?:[A-J]|or|and|not)\b", match["rest"] or ""):
        return None
    return (match["closed"] or match["alone"]).lower()


def exact_decimals(text: str) -> str:
    r"""Replace decimals by exact fractions, so that nothing is compared after rounding.

    0.50 becomes `\frac{1}{2}`, and the repeating decimal `0.1\overline{6}` becomes `\frac{1}{6}`.
    """
    text = _REPEATING.sub(lambda match: _as_repeating_fraction(*match.groups()), text)
    return _DECIMAL.sub(lambda match: _as_fraction(match[0]), text)


def _as_fraction(literal: str) -> str:
    return _latex(Fraction(literal))


def _as_repeating_fraction(whole: str, fixed: str, repeated: str) -> str:
    # A period of r digits after f fixed digits is its number divided by 10^f * (10^r - 1), as in 0.1666... = 1/10 +
    # 6/90.
    period = Fraction(int(repeated), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return _latex(Fraction(f"{whole or 0}.{fixed or 0}") + period)


def _latex(value: Fraction) -> str:
    return (
        str(value.numerator)
        if value.denominator == 1
        else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    )


def _from_unicode(text: str) -> str:
    pieces = []
    for run in re.findall(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+|[₀₁₂₃₄₅₆₇₈₉]+|√.?|.", text, flags=re.DOTALL):
        first = run[0]
        if first in "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ":
            pieces.append(f"^{{{run.translate(_SUPERSCRIPTS)}}}")
        elif first in "₀₁₂₃₄₅₆₇₈₉":
            pieces.append(f"_{{{run.translate(_SUBSCRIPTS)}}}")
        elif first == "√":
            pieces.append(r"\sqrt " + run[1:])
        elif unicodedata.decomposition(first).startswith("<fraction>") and "⁄" in (
            form := unicodedata.normalize("NFKC", first)
        ):
            numerator, denominator = form.split("⁄")
            pieces.append(rf"\frac{{{numerator}}}{{{denominator}}}")
        else:
            # NFKC handles the rest: full-width characters, and thin and no-break spaces, which become blanks.
            pieces.append(_SYMBOLS.get(first) or unicodedata.normalize("NFKC", first))
    return _bracket_roots("".join(pieces))


def _bracket_roots(text: str) -> str:
    r"""Add braces to roots that come from the root sign: `\sqrt 12` applies to 12, `\sqrt (x+1)` to the bracket."""
    text = re.sub(r"\\sqrt (\d+|[A-Za-z])", r"\\sqrt{\1}", text)
    return re.sub(r"\\sqrt \(([^()]*)\)", r"\\sqrt{\1}", text)
