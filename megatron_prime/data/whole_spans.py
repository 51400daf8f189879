r"""Parts of a response that no reasoning step may be cut in: formulas and code.

Formulas are $...$, $$...$$, \(...\), \[...\] and \begin{name}...\end{name}; code is what stands between ``` fences. An
opening without its closing protects nothing, but for a fence, which then runs to the end: a response that was
truncated.
"""

import re
from collections.abc import Iterator

MAX_INLINE_CHARACTERS = 2000
"""A formula between single dollars is no longer: a dollar sign without a partner must not swallow the response."""
_OPENING = re.compile(
    r"(?P<fence>^[ ]{0,3}```)|(?P<begin>\\begin\{(?P<name>[A-Za-z]+\*?)\})|(?P<display>\\\[)|(?P<inline>\\\()"
    r"|(?P<escaped>\\.)|(?P<double>\$\$)|(?P<dollar>\$)",
    re.MULTILINE | re.DOTALL,
)
_CLOSING_FENCE = re.compile(r"^[ ]{0,3}```[ \t]*$", re.MULTILINE)
# As Markdown writers have it: "$5 or $6" is money.
_CLOSING_DOLLAR = re.compile(r"(?<![\s\\])\$(?!\d)")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_ENDINGS = {"display": "\\]", "inline": "\\)", "double": "$$"}


def whole_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) in characters of each part, in order and without overlap: the outermost ones."""
    return list(_spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    place = 0
    missing: set[str] = set()
    """Endings that do not come any more: looking for them again at every opening would take quadratic time."""
    while opening := _OPENING.search(text, place):
        end = _end_of(text, opening, missing)
        if end is None:
            place = opening.end()
        else:
            yield opening.start(), end
            place = end


def _end_of(text: str, opening: re.Match[str], missing: set[str]) -> int | None:
    """Where the part that opens here ends; None when it does not."""
    kind = opening.lastgroup if opening["begin"] is None else "begin"
    start = opening.end()
    if kind == "fence":
        line_end = text.find("\n", start)
        closing = None if line_end < 0 else _CLOSING_FENCE.search(text, line_end)
        return len(text) if closing is None else closing.end()
    if kind == "begin":
        return _end_of_environment(text, opening["name"], start, missing)
    if kind == "dollar":
        return _end_of_inline(text, start)
    if kind not in _ENDINGS:
        return None  # an escaped character
    return _find(text, _ENDINGS[kind], start, missing)


def _end_of_environment(text: str, name: str, start: int, missing: set[str]) -> int | None:
    r"""The matching \end, environments of the same name inside included."""
    begin, end = f"\\begin{{{name}}}", f"\\end{{{name}}}"
    depth, place = 1, start
    while depth:
        close = _find(text, end, place, missing)
        if close is None:
            return None
        depth += text.count(begin, place, close) - 1
        place = close
    return place


def _end_of_inline(text: str, start: int) -> int | None:
    if start >= len(text) or text[start].isspace():
        return None
    limit = min(len(text), start + MAX_INLINE_CHARACTERS)
    blank = _BLANK_LINE.search(text, start, limit)
    closing = _CLOSING_DOLLAR.search(text, start + 1, blank.start() if blank else limit)
    return closing.end() if closing else None


def _find(text: str, ending: str, start: int, missing: set[str]) -> int | None:
    if ending in missing:
        return None
    place = text.find(ending, start)
    if place < 0:
        missing.add(ending)
        return None
    return place + len(ending)
