r"""Rewrites habits of writing as usual LaTeX: programs' notation, layout, decoration, reversed brackets."""

import re
from collections.abc import Callable

from megatron_prime.rewards.math.structure import split_top_level

_FUNCTIONS = "sin|cos|tan|cot|csc|sinh|cosh|tanh|arcsin|arccos|arctan|ln|log|exp"
_NAMES = "pi|theta|alpha|beta|gamma|lambda|omega"
_DATES = "january|february|march|april|may|june|july|august|september|october|november|december"
_THOUSANDS = re.compile(
    r"(?P<before>(?:[A-Za-z]\s*=\s*)?-?)(?P<number>\d{1,3}(?:([, ])\d{3})(?:\3\d{3})*(?:\.\d+)?)"
    r"(?P<after>\s*(?:\\text\{[^{}]*\}(?:\^\{?\d\}?)?|\\pi|\\?%)?)"
)

_DECORATION = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:label|tag|[hv]space|phantom|[hv]phantom)\*?\s*\{[^{}]*\}", " "),
        (r"(?:\s|\\[,;:! ]|\\q?quad|~)*\\(?:checkmark|blacksquare|square|Box|qed)\s*\.?\s*$", ""),
        (r"\s*\\\\\s*$", ""),
        (r"\\(?:ensuremath|pmb|mathbin|mathord|mathop|mathnormal|mathcal)\s*(?=\{)", ""),
        (r"\\mathsf\s*\{(?=[A-Za-z]{2,}\})", r"\\mathrm{"),
        (r"^\s*\\(?:text|mathrm)\{([A-Z])\}\s*(?=\()", r"\1"),
        # Upright letters without braces, and functions in upright type; \mathrm{sec} is a second.
        (r"\\(mathrm|mathbf)\s+([A-Za-z])(?![A-Za-z])", r"\\\1{\2}"),
        (rf"\\(?:operatorname\*?|mathrm|text)\s*\{{({_FUNCTIONS})\}}", r"\\\1 "),
        (r"\\operatorname\{sec\}", r"\\sec "),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\(?:rightarrow|longrightarrow)(?![A-Za-z])", r"\\to"),
        (r"\\(d?t?binom)\s*(\w)\s*(\w)(?!\w)", r"\\\1{\2}{\3}"),
        (r"(?<=\d),\\!(?=\d{3}(?!\d))", ""),
        (r"=([^=,]*)\\q?quad\s*(?=[A-Za-z]\s*=)", r"=\1, "),
        (
            r"^\s*\\text\{\s*(?:[Tt]he )?(?:[Pp]oint|[Vv]ertex|[Cc]ent(?:er|re)|[Ff]ocus)\s*(?:is|at)?"
            r"\s*:?\s*\}\s*(?=\()",
            "",
        ),
        # Numerals with a base.
        (r"^\s*\(\s*(-?[\dA-F]+)\s*\)\s*_", r"\1_"),
        (r"(?<=[\dA-F])_\{\s*\((\d+)\)\s*\}", r"_{\1}"),
        (
            r"^\s*(-?[\dA-F]+)\s*\\text\{\s*\(?\s*(?:in )?base\s*(?:\}\s*(\d+)|(\d+)\s*\)?\s*\})\s*$",
            r"\1_{\2\3}",
        ),
    )
)
_PROGRAM = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"(?<![A-Za-z\\])({_NAMES})(?![A-Za-z])", r"\\\1 "),
        (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=\s*\()", r"\\\1"),
        (r"(?<![A-Za-z\\])a(sin|cos|tan)(?=\s*\()", r"\\arc\1"),
        (r"(?<=[,(\[+-])(\s*)(?:inf|oo)(?=\s*[,)\]])", r"\1\\infty"),
        (r"(?<=\s)!=", r"\\ne "),
        (r"\+/-|^\s*\+-", r"\\pm "),
        (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
    )
)
_ROOTS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("sqrt", lambda inner: rf"\sqrt{{{inner}}}"),
    ("cbrt", lambda inner: rf"\sqrt[3]{{{inner}}}"),
    (r"\exp", lambda inner: rf"e^{{{inner}}}"),
    ("abs", lambda inner: f"|{inner}|"),
)
_TEXT = re.compile(r"(\\text\s*\{[^{}]*\})")
_SYSTEM = re.compile(
    r"\\left\s*\\\{\s*\\begin\{array\}\{[lcr]+\}(.*)\\end\{array\}\s*\\right\s*\.", flags=re.DOTALL
)
_LAYOUT = re.compile(
    r"\\begin\{(aligned|align\*?|gathered|split|equation\*?|cases)\}(.*)\\end\{\1\}", flags=re.DOTALL
)


def rewritten(text: str) -> str:
    """Rewrite an answer before its notation is normalized."""
    text = _without_layout(text)
    for pattern, replacement in _DECORATION:
        text = pattern.sub(replacement, text)
    pieces = _TEXT.split(text)
    for index in range(0, len(pieces), 2):
        for pattern, replacement in _PROGRAM:
            pieces[index] = pattern.sub(replacement, pieces[index])
    return _with_roots("".join(pieces))


def _without_layout(text: str) -> str:
    """Return the rows of an aligned box or a system of equations as a list; a row with = in front continues a chain."""
    text = _SYSTEM.sub(r"\\begin{cases}\1\\end{cases}", text)
    layout = _LAYOUT.search(text)
    if layout is None or (layout[1] == "cases" and "&" in layout[2]):
        return text
    rows = [row.replace("&", "").strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?", layout[2])]
    joined = ""
    for row in filter(None, rows):
        joined += row if not joined or row.startswith("=") else ", " + row.lstrip()
    return text[: layout.start()] + re.sub(r",\s*,", ",", joined) + text[layout.end() :]


def _with_roots(text: str) -> str:
    """Replace `sqrt(2)` and its kind, whose brackets must be balanced."""
    for name, written in _ROOTS:
        pattern = re.compile(rf"(?<![A-Za-z\\]){re.escape(name)}\s*\(")
        while (match := pattern.search(text)) is not None:
            end = _closing_bracket(text, match.end())
            if end is None:
                break
            text = text[: match.start()] + written(text[match.end() : end]) + text[end + 1 :]
    return text


def _closing_bracket(text: str, start: int) -> int | None:
    depth = 1
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return None


def joined_thousands(text: str) -> str:
    """Return a number without the separators of thousands, with its name, unit or factor pi; other texts unchanged."""
    match = _THOUSANDS.fullmatch(text)
    return text if match is None else match["before"] + re.sub("[, ]", "", match["number"]) + match["after"]


def round_brackets(text: str) -> str:
    r"""Write intervals with reversed brackets, such as `]0,6]`, with round ones."""
    pieces = []
    for piece in re.split(r"(\\cup(?![A-Za-z]))", text):
        match = re.fullmatch(
            r"(\s*(?:[A-Za-z]\s*(?:\\in(?![A-Za-z])|=)\s*)?)([\]\[(])([^\[\]]*)([\]\[)])(\s*)", piece
        )
        if (
            match is not None
            and (match[2] == "]" or match[4] == "[")
            and len(split_top_level(match[3], ",;")) == 2
        ):
            opening, closing = "(" if match[2] == "]" else match[2], ")" if match[4] == "[" else match[4]
            piece = match[1] + opening + match[3].replace(";", ",") + closing + match[5]
        pieces.append(piece)
    return "".join(pieces)


def listed_rows(text: str) -> str:
    r"""Write `[[1,2],[3,4]]` as a matrix."""
    if re.fullmatch(r"\[\s*\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])+\s*\]", text) is None:
        return text
    rows = [re.split(r"\s*,\s*", row.strip()) for row in re.findall(r"\[([^\[\]]*)\]", text)]
    if len({len(row) for row in rows}) > 1:
        return text
    return r"\begin{pmatrix}" + r"\\".join("&".join(row) for row in rows) + r"\end{pmatrix}"


_ADJECTIVES = r"(?:(?:real|integer|integral|rational|positive|negative|whole|complex|such) )*"
_NOTHING = re.compile(
    rf"(?:there (?:is|are) |(?:it|the (?:equation|system|inequality|problem)) has )?(no {_ADJECTIVES})"
    r"(solution|root|integer|number|value|triangle)s?(?: (?:exists?|is possible|are possible))?"
)
_SUBJECT = r"(?:(?:it|this|the [a-z]+(?: [a-z]+)?) )?"
_OUTCOME = re.compile(
    rf"{_SUBJECT}(?:(?P<verb>diverge|converge)s|is (?P<adjective>diverg|converg)ent)"
    r"(?P<way> absolutely| conditionally)?"
    rf"|(?P<bare>diverg|converg)ent|(?:{_SUBJECT}is )?(?P<undefined>undefined|not defined)"
)
_MEMBERS = re.compile(
    r"(?:the )?(?:set of )?(?P<all>(?:all|every|any) (?:the )?)?"
    r"(?P<kind>(?:(?:odd|even|prime|positive|negative|non-?negative|natural|rational|complex|composite) )*)"
    r"(?P<noun>integer|number|prime|composite)(?P<plural>s?)(?: [a-z])?"
)
_NAMED_SETS = {
    "positive integer": r"\mathbb{Z}^{+}", "nonnegative integer": r"\mathbb{Z}_{\ge 0}",
    "natural number": r"\mathbb{N}", "rational number": r"\mathbb{Q}", "complex number": r"\mathbb{C}",
    "negative integer": r"\mathbb{Z}^{-}",
}  # fmt: skip
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"


def canonical_phrase(phrase: str) -> str | None:
    """Return one form of a sentence in lower case about an outcome, a set of numbers or a date, else None."""
    if nothing := _NOTHING.fullmatch(phrase):
        return f"{nothing[1]}{nothing[2]}"
    if outcome := _OUTCOME.fullmatch(phrase):
        if outcome["undefined"]:
            return "undefined"
        stem = (outcome["verb"] or outcome["adjective"] or outcome["bare"]).removesuffix("e")
        return f"{stem}es{outcome['way'] or ''}"
    if date := re.fullmatch(rf"({_DATES}) {_DAY}|(?:the )?{_DAY}(?: of)? ({_DATES})", phrase):
        return f"{date[1] or date[4]} {int(date[2] or date[3])}"
    members = _MEMBERS.fullmatch(phrase)
    if members is None or not (members["all"] or members["plural"]):
        return None
    kind = (members["kind"] + members["noun"]).replace("non-", "non").replace("prime number", "prime")
    if kind in ("number", "integer"):
        return None
    return _NAMED_SETS.get(kind, f"all {kind}s")
