r"""One notation for an answer: Unicode to LaTeX, spacing and decoration away, decimals to exact fractions."""

# ruff: noqa: RUF001 - look-alike characters are what this file is about
import re
import unicodedata
from fractions import Fraction

from megatron_prime.rewards.boxed import closing_brace

MAX_CHARS = 400
"""Longer answers are compared as written only."""
MAX_POWERS = 40
MAX_EXPONENT_PRODUCT = 10**5
"""Of all numeric exponents: bounds the digits of nested powers and the terms of expanded ones."""

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "°": r"^{\circ}",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ℝ": r"\mathbb{R}", "′": "'", "∣": "|",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (
            r"\\(?:text|mathrm|mathbf|textbf|mbox|textrm|textit|bm|boldsymbol)\s*\{\s*([^{}]*?)\s*\}",
            r"\\text{\1}",
        ),
        (r"\\mathbb\s*\{?\s*R\s*\}?", r"(-\\infty,\\infty)"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", r"\\degree "),
        (r"\\degrees?(?![A-Za-z])\s*", r"\\degree "),
        (r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)+(?=\d{3}(?!\d))", ""),
        (r"\\(?:[,!;: ]|quad|qquad)|~", " "),
        (r"\\\$|\$|\\\(|\\\)|\\\[|\\\]", " "),
        (r"\\[lr]brace(?![A-Za-z])", lambda match: "\\{" if match[0][1] == "l" else "\\}"),
        # A mantissa and an exponent, but not Euler's number in 2e or an identifier in x1e5.
        (r"(?<![A-Za-z\d.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,3})(?![\d.A-Za-z])", r"\1\\times 10^{\2}"),
        (r"(?<!\d)(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),
        (r"\*\*", "^"),
        (r"\s+", " "),
    )
)
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.]*\.)|(?<=[A-Za-z}])(\d+)\.(\d+)")
_WORD = re.compile(r"\\text\{([^{}]*)\}|([A-Za-z][A-Za-z .'-]*[A-Za-z]|[A-Za-z])")

NO_SOLUTION = {
    "no solution",
    "no solutions",
    "none",
    "empty set",
    "the empty set",
    "no real solution",
    "null set",
}


def normalise(text: str) -> str:
    """`text` in the notation that the comparison works on. Idempotent up to spacing; never raises."""
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
    """Without white space: equal means equal as written."""
    return re.sub(r"\s+", "", text)


def words(text: str) -> str | None:
    r"""The lower-case words that `text` consists of, wholly; None for anything with mathematics in it.

    `\text{East}`, `East` and `\text{(C)}` are words; `x`, `ab` (a product) and `2 east` are not. Read as mathematics,
    "east" is the product of its letters, equal to "seat".
    """
    match = _WORD.fullmatch(text.strip())
    if match is None:
        choice = re.fullmatch(r"\(?\s*([A-Z])\s*\)?", text.strip())
        return choice[1].lower() if choice and "(" in text else None
    if match[1] is not None:
        return re.sub(r"\s+", " ", match[1].strip().strip("().")).lower()
    letters = match[2]
    return re.sub(r"\s+", " ", letters).lower() if max(map(len, letters.split())) > 2 else None


def exact_decimals(text: str) -> str:
    r"""Decimal literals as exact fractions, so that nothing is compared after rounding: 0.50 -> `\frac{1}{2}`."""
    return _DECIMAL.sub(lambda match: _as_fraction(match[0]), text)


def _as_fraction(literal: str) -> str:
    value = Fraction(literal)
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
            # Symbols first: NFKC would turn the thin and no-break spaces into blanks, which is right, and leaves these.
            pieces.append(_SYMBOLS.get(first) or unicodedata.normalize("NFKC", first))
    return _bracket_roots("".join(pieces))


def _bracket_roots(text: str) -> str:
    r"""`\sqrt 12` (from the root sign) takes the whole number, `\sqrt (x+1)` the bracket."""
    text = re.sub(r"\\sqrt (\d+|[A-Za-z])", r"\\sqrt{\1}", text)
    return re.sub(r"\\sqrt \(([^()]*)\)", r"\\sqrt{\1}", text)


def is_costly(text: str) -> bool:
    """Whether evaluating `text` could take more than moments: huge powers, power towers, factorials.

    A cheap guard in front of the deadline, not a proof: what slips through is killed there.
    """
    if len(text) > MAX_CHARS or text.count("^") > MAX_POWERS or len(re.findall(r"\d{400,}", text)):
        return True
    if re.search(r"!\s*!|!\s*[)}\]]*\s*!", text):
        return True
    if any(len(digits) > 3 for digits in re.findall(r"(\d+)\s*[)}]*\s*!", text)):
        return True
    exponents = _exponents(text)
    product = 1
    for exponent in exponents:
        if "^" in exponent and re.search(r"\d", exponent):
            return True
        for digits in re.findall(r"\d+", exponent):
            product *= max(1, int(digits[:9]))
            if len(digits) > 4 or product > MAX_EXPONENT_PRODUCT:
                return True
    return False


def _exponents(text: str) -> list[str]:
    """What stands above each ^, a tower as one."""
    exponents = []
    for match in re.finditer(r"\^\s*", text):
        rest = match.end()
        if text[rest : rest + 1] == "{":
            end = closing_brace(text, rest + 1)
            end = len(text) if end is None else end + 1
        else:
            plain = re.compile(r"[({]?[-+]?\d*[A-Za-z]?").match(text, rest)
            end = rest + (len(plain[0]) if plain else 1)
        tower = re.compile(r"\s*\^").match(text, end)
        exponents.append(text[rest:end] + (tower[0] if tower else ""))
    return exponents
