r"""Converts an answer to one notation: Unicode to LaTeX, no spacing or decoration, decimals as exact fractions."""

# ruff: noqa: RUF001 - this file is about look-alike characters
import re
import unicodedata
from fractions import Fraction
from itertools import groupby

from megatron_prime.rewards.math.boxed import closing_brace
from megatron_prime.rewards.math.dialects import (
    canonical_phrase,
    joined_thousands,
    listed_rows,
    rewritten,
    round_brackets,
)
from megatron_prime.rewards.math.number_words import expand_multipliers, number_in_words
from megatron_prime.rewards.math.structure import split_top_level
from megatron_prime.rewards.math.units import unit_named

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": "/", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "°": r"^{\circ}",
    "¢": r"\text{ cents}", "€": r"\text{€}", "£": r"\text{£}", "⟨": r"\langle ", "⟩": r"\rangle ", "∖": r"\setminus ",
    "≡": r"\equiv ", "ℤ": r"\mathbb{Z}", "∠": r"\angle ", "μ": r"\mu ", "µ": r"\mu ", "∧": r"\land ", "∨": r"\lor ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ℝ": r"\mathbb{R}", "′": "'",
    "｛": r"\{", "｝": r"\}", "…": r"\ldots ", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}",
    "•": r"\cdot ", "∥": r"\parallel ", "⊥": r"\perp ", "⟂": r"\perp ", "∫": r"\int ", "ℓ": r"\ell ", "″": "''",
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "✓": r"\checkmark ", "✔": r"\checkmark ",
    "✅": r"\checkmark ", "≈": r"\approx ", "→": r"\to ", "∣": "|",
}  # fmt: skip

_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def _numeral_base(index: re.Match[str]) -> str:
    base = _BASES.get(index[1].lower())
    return index[0] if base is None else f"_{{{base}}}"


def _upright_letters(match: re.Match[str]) -> str:
    if "{" not in match[1]:
        return match[0]
    return re.sub(r"(?<![A-Za-z\\])[A-Za-z]+", lambda letters: rf"\text{{{letters[0]}}}", match[1])


def _basis_vector(match: re.Match[str]) -> str:
    return rf"\mathsf{{{match[1]}}}"


# The order matters: commands for fonts and upright text are unified before the patterns that look into \text{},
# spacing between groups of three digits is removed before other spacing becomes blanks, and money before the dollar
# signs of math mode.
_ANSWER = (
    "(?:(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|[Ff]inally),? )?(?:[Tt]he |[Oo]ur |[Mm]y )?"
    "(?:final |correct |required |exact )?"
    "(?:[Aa]nswer|[Rr]esult|[Vv]alue|[Ss]olution"
    "|(?:area|volume|perimeter|length|distance|total|sum|probability|number)(?= is))(?: is)?"
)
_COMMANDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (
            r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|bf|rm|it|underline|uline|tiny|small|normalsize|large|Large"
            r"|LARGE|huge|Huge|therefore)(?![A-Za-z])\.?",
            "",
        ),
        (r"^\s*\*\*([^*]+)\*\*\s*$", r"\1"),
        # Of a deduction, the result: 2x=10 \implies x=5.
        (r"^[^{}]*=[^{}]*(?:\\implies|\\Rightarrow|\\Longrightarrow)(?![A-Za-z])", ""),
        (r"\\log_\{?e\}?(?![A-Za-z])", r"\\ln"),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (
            r"\\(?:hat|vec)\s*\{?\s*(?:\\(?:mathbf|bm|boldsymbol|textbf)\s*\{\s*)?\\?([ijk])(?:math)?\s*\}?\s*\}?",
            _basis_vector,
        ),
        (r"\\(?:mathbf|bm|boldsymbol|textbf)\s*\{\s*([ijk])\s*\}", _basis_vector),
        (r"\\(langle|rangle)(?![A-Za-z])", lambda match: "(" if match[1] == "langle" else ")"),
        (r"\\lg(?![A-Za-z])|\\operatorname\{lg\}", r"\\log_{10}"),
        # Euler's number and the imaginary unit in upright type.
        (r"\\mathrm\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
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
            r"\\(?:text|mathrm|mathbf|textbf|mbox|textrm|textit|bm|boldsymbol|emph|mathit|textsf|texttt|hbox)\s*\{([^{}]*)\}",
            lambda match: rf"\text{{{match[1].replace('~', ' ').strip()}}}",
        ),
        # Upright type around more than words, as units have it: \mathrm{m\cdot s^{-1}}.
        (r"\\(?:text|mathrm)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", _upright_letters),
        (
            r"_\s*\{?\s*\\text\{(\w+)\}\s*\}?",
            _numeral_base,
        ),
        # "The answer is 7" and its kinds.
        (rf"^\s*(?:{_ANSWER}\s*[:=]? (?=\S)|\\text\{{{_ANSWER}\s*[:=]?\}})", ""),
        (rf"^\s*\\text\{{{_ANSWER}\s*:? ([^{{}}]*)\}}", r"\\text{\1}"),
        (r"^\s*(?:\\text\{(?:[Mm]inus|[Nn]egative)\}|(?:[Mm]inus|[Nn]egative)(?= [\d\\]))\s*", "-"),
        (r"^\s*(\d[\d.,]*)\s*(?:\\text\{)?\s*(?:\\degree|degrees?|°)?\s*below zero\s*\}?$", r"-\1"),
        (
            r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\s*\+\s*\}?|_\s*\{?\s*\+\s*\}?|_\s*\{\s*>\s*0\s*\})",
            r"(0,\\infty)",
        ),
        (r"\\mathbb\s*\{?\s*R\s*\}?", r"(-\\infty,\\infty)"),
        (r"\\mathbb\s*\{?\s*([ZQNC])\s*\}?", r"\\mathbb{\1}"),
        (r"\\mathbb\{Z\}\s*(?:\^\s*\{?\s*\+\s*\}?|_\s*\{?\s*(?:\+|>\s*0)\s*\}?)", r"\\mathbb{Z}^{+}"),
        (r"\\mathbb\{Z\}\s*_\s*\{?\s*(?:\\ge|\\geq)\s*0\s*\}?", r"\\mathbb{Z}_{\\ge 0}"),
        (r"^\s*[a-z]\s*\\in\s*(?=\\mathbb\{[ZQNC]\}\s*(?:\^\{[+-]\}|_\{\\ge 0\})?\s*$)", ""),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", r"\\degree "),
        (r"\\degrees?(?![A-Za-z])\s*", r"\\degree "),
        (
            r"(\d+)\\degree\s*([0-5]?\d)\s*(?:'|\^\{?\\prime\}?)(?!')(?:\s*([0-5]?\d)\s*(?:''|\"|\^\{?\\prime\s*\\prime\}?))?"
            r"(?![\d'])",
            lambda match: rf"{match[1]}\frac{{{60 * int(match[2]) + int(match[3] or 0)}}}{{3600}}\degree ",
        ),
        (
            r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d+(?:\.\d+)?)\s*\\degree\s*",
            r"\1(\2\\cdot\\pi/180)",
        ),
        (r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)+(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)(?:\\!|\{)+:(?:\\!|\})+(?=\d)", ":"),
    )
)
_MONEY = r"\s*(\d[\d,]*(?:\.\d+)?|\\frac\{\d+\}\{\d+\})(\\times (?:12|10\^\{\d+\}))?"
_SPACING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # An escaped dollar sign is money. Two backslashes end a row of a matrix and do not escape what follows.
        (
            r"\\\$" + _MONEY + r"(?:\s*\\text\{(?:dollars|USD)\})?",
            lambda match: match[1].replace(",", "") + (match[2] or "") + r"\text{ dollars}",
        ),
        (
            r"^\s*(?:\\text\{\s*)?(Rs|USD|EUR|INR|GBP)(?![A-Za-z])\.?\s*\}?\s*(\d[\d.,]*)$",
            lambda match: match[2].replace(",", "") + rf"\text{{ {match[1]}}}",
        ),
        (
            r"\\text\{([€£])\}" + _MONEY,
            lambda match: (
                match[2].replace(",", "")
                + (match[3] or "")
                + rf"\text{{ {'euros' if match[1] == '€' else 'GBP'}}}"
            ),
        ),
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
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.]*\.)|(?<=[A-Za-z}])(\d+)\.(\d+)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d{1,50})\}?")
_WORD = re.compile(r"\\text\{([^{}]*)\}|([A-Za-z][A-Za-z .'-]*[A-Za-z]|[A-Za-z])")
_CHOICE = re.compile(r"\(?\s*(?P<closed>[A-J])\s*[).:](?P<rest>.*)|(?P<alone>[A-Ja-dfghj])", flags=re.DOTALL)
_ARTICLE = re.compile(r"(?:a|an|the) (?=\w\w)")

_SYNONYMS = {
    phrase: canonical
    for canonical, phrases in {
        r"\emptyset": "no solution;no solutions;none;empty set;the empty set;no real solution;no real solutions;"
        "null set;no real roots;no real root;no root;no roots;no real value;no real number;"
        "no solutions exist;no solution exists;it has no solution;has no solution;"
        "there is no solution;there are no solutions",
        r"\text{DNE}": "dne;d.n.e;does not exist;doesn't exist;limit does not exist;the limit does not exist",
        r"\text{infinitely many}": "infinitely many;infinitely many solutions;there are infinitely many solutions;"
        "infinite solutions",
        r"\mathbb{Z}": "all integers;any integer;integers;set of all integers;the set of all integers;every integer",
        r"\infty": "infinity;positive infinity",
        r"-\infty": "negative infinity;minus infinity",
    }.items()
    for phrase in phrases.split(";")
}
_REALS = re.compile(
    r"(?P<open>\\text\{)?\s*(?:[a-z] is )?(?:the set of )?(?:all|any|every)(?: the)? "
    r"(?P<kind>positive |negative |non-?negative |non-?zero )?"
    r"(?:real numbers?|reals|real values?(?: of)?|real)(?: [a-z]| \$?[a-z]\$?)?(?=[ },]|$)",
    flags=re.IGNORECASE,
)
_REALS_OF_KIND = {
    "": r"(-\infty,\infty)", "positive": r"(0,\infty)", "negative": r"(-\infty,0)", "nonnegative": r"[0,\infty)",
    "nonzero": r"(-\infty,0)\cup(0,\infty)",
}  # fmt: skip
_BARE_BRACES = re.compile(r"(?:^|[=,(]|\\(?:cup|cap|in|setminus)(?![A-Za-z])|(?<=\))\s*-)\s*(?=\{)")


def normalise(text: str) -> str:
    """Convert an answer to the notation that comparisons use. Idempotent up to spacing; never raises."""
    # Single blanks keep the patterns linear.
    text = rewritten(re.sub(r"\s+", " ", _from_unicode(text)))
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = expand_multipliers(text)
    for pattern, replacement in _SPACING:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s*(?:\.|\\text\{[.,;]\})?\s*$", "", text.strip())
    text = listed_rows(round_brackets(joined_thousands(text)))
    if text.replace(" ", "") == r"\{\}":
        return r"\emptyset"
    # The full stop of a sentence that stands in \text as a whole.
    return _escaped_braces(_in_symbols(re.sub(r"(?<=\w)\.\s*\}$", "}", text)))


def _in_symbols(text: str) -> str:
    """Replace numbers in words, and sets of numbers in words, by mathematics."""
    if text.startswith(r"\text{") and re.fullmatch(r"\\text\{[^A-Za-z{}]*\d[^A-Za-z{}]*\}", text):
        return text[6:-1].strip()
    phrase = (
        re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip().rstrip(".").lower()
        if re.search("[A-Za-z]{3}", text)
        else ""
    )
    phrase = re.sub(r"\s+", " ", phrase)
    canonical = canonical_phrase(phrase) or ""
    if (known := _SYNONYMS.get(phrase) or _SYNONYMS.get(canonical)) is not None:
        return known
    if canonical:
        return canonical if canonical.startswith("\\") else rf"\text{{{canonical}}}"
    if re.fullmatch(r"[a-z]+(?:[ -]+[a-z]+)*", phrase) and (number := _counted_in_words(phrase)) is not None:
        return number
    if re.fullmatch(r"\\text\{(?:-?\d[\d.,/]* +[A-Za-z][^{}\d]*)+\}", text):
        return re.sub(r"(-?\d[\d.,/]*) +([^{}\d]*[^{}\d ])", r"\1\\text{ \2}", text[6:-1])
    reals = _REALS.match(text)
    if reals is None:
        return text
    rest = text[reals.end() :]
    if reals["open"]:
        # What follows in the same \text stays there: "all real numbers except".
        rest = "" + rest[1:] if rest.startswith("}") else r"\text{" + rest.lstrip()
    return (_REALS_OF_KIND[(reals["kind"] or "").strip().lower().replace("-", "")] + rest).strip()


def _counted_in_words(phrase: str) -> str | None:
    r"""Return the numeral of a number in words, with its unit as text if it has one: `5\text{ apples}`."""
    tokens = phrase.split(" ")
    for length in (len(tokens), len(tokens) - 1, len(tokens) - 2):
        rest = " ".join(tokens[length:])
        if length > 0 and (not rest or rest == "percent" or unit_named(rest) is not None):
            number = number_in_words(" ".join(tokens[:length]))
            if number is not None:
                return rf"{number}\text{{ {rest}}}" if rest else number
    return None


def _escaped_braces(text: str) -> str:
    r"""Escape the braces of a set that lack a backslash: `{1,2}`, `{x | x>3}`, but not the group `{7}`."""
    for start in reversed([match.end() for match in _BARE_BRACES.finditer(text)]):
        end = closing_brace(text, start + 1)
        inner = "" if end is None else text[start + 1 : end]
        is_set = (
            len(split_top_level(inner, ",|")) > 1
            or r"\mid" in inner
            or re.search(r"\\(?:cup|cap|setminus)\s*$", text[:start])
        )
        if end is not None and is_set:
            text = rf"{text[:start]}\{{{inner}\}}{text[end + 1 :]}"
    return text


def squeezed(text: str) -> str:
    """Return the text without white space that means nothing, for comparison as text: `4 2` is not 42."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


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
        if max(map(len, re.split("[ .'-]+", letters))) > 2
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


def chosen_letters(text: str) -> frozenset[str] | None:
    r"""Return the letters of several options, such as `A, C`, `\text{(A)}, \text{(C)}` or `AC`; None otherwise."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    plain = re.sub(r"^(?:options?|choices?|answers?)\b:?\s*", "", plain, flags=re.IGNORECASE)
    if re.fullmatch("[A-J]{2,10}", plain) and list(plain) == sorted(set(plain)):
        return frozenset(plain)
    parts = [
        re.fullmatch(r"\(?\s*([A-J])\s*[).]?", part)
        for part in re.split(r"\s*(?:,\s*and\b|,|;|\band\b|&)\s*", plain)
    ]
    letters = [part[1] for part in parts if part is not None]
    return (
        frozenset(letters) if len(letters) == len(parts) > 1 and len(set(letters)) == len(letters) else None
    )


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
    for script, run in groupby(text, _script):
        if script:
            pieces.append(f"{script}{{{''.join(map(_plain, run))}}}")
        else:
            pieces += map(_plain, run)
    return _bracket_roots("".join(pieces))


def _script(character: str) -> str:
    """Return ^ for a raised character, _ for a lowered one."""
    return {"<super>": "^", "<sub>": "_"}.get(unicodedata.decomposition(character).split(" ")[0], "")


def _plain(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    # NFKC handles the rest: letters of mathematics, full-width characters, and thin and no-break spaces, which become
    # blanks.
    form = unicodedata.normalize("NFKC", character)
    if "⁄" in form and form != character:
        numerator, denominator = form.split("⁄")
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    return "".join(_SYMBOLS.get(part, part) for part in form)


def _bracket_roots(text: str) -> str:
    r"""Add braces to roots that come from the root sign: `\sqrt 12` applies to 12, `\sqrt (x+1)` to the bracket."""
    text = re.sub(r"\\sqrt((?:\[\d\])?) (\d+|[A-Za-z]|\\pi(?![A-Za-z]))", r"\\sqrt\1{\2}", text)
    return re.sub(r"\\sqrt((?:\[\d\])?) \(([^()]*)\)", r"\\sqrt\1{\2}", text)
