r"""Finds the parts of a response that a step boundary must not cut: formulas and code blocks.

Formulas are $...$, $$...$$, \(...\), \[...\] and \begin{name}...\end{name}; code is the text between ``` fences. An
opening delimiter without its closing one is ordinary text. The exception is a code fence, which extends to the end of
the text, because the response was probably truncated.
"""

import re
from collections.abc import Iterator

MAX_INLINE_CHARACTERS = 2000
"""Limit on a formula between single dollars, so that an unpaired dollar sign does not swallow the response."""
_OPENING = re.compile(
    r"(?P<fence>^[ ]{0,3}```)|(?P<begin>\\begin\{(?P<name>[A-Za-z]+\*?)\})|(?P<display>\\\[)|(?P<inline>\\\()"
    r"|(?P<escaped>\\.)|(?P<double>\$\$)|(?P<dollar>\$)",
    re.MULTILINE | re.DOTALL,
)
_CLOSING_FENCE = re.compile(r"^[ ]{0,3}```[ \t]*$", re.MULTILINE)
# As in Markdown, a closing dollar follows a non-blank and precedes no digit: "$5 or $6" is money.
_CLOSING_DOLLAR = re.compile(r"(?<![\s\\])\$(?!\d)")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_ENDINGS = {"display": "\\]", "inline": "\\)", "double": "$$"}


def whole_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) in characters of each outermost formula or code block, in order."""
    return list(_spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    position = 0
    # Delimiters known not to occur any more: searching for them again at every opening would take quadratic time.
    missing: set[str] = set()
    while opening := _OPENING.search(text, position):
        end = _end_of(text, opening, missing)
        if end is None:
            position = opening.end()
        else:
            yield opening.start(), end
            position = end


def _end_of(text: str, opening: re.Match[str], missing: set[str]) -> int | None:
    """Return the end of the part that starts with `opening`, or None if it has no end."""
    kind = opening.lastgroup if opening["begin"] is None else "begin"
    start = opening.end()
    if kind == "fence":
        # The rest of the opening line names the language and cannot close the block.
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
    r"""Return the end of the matching \end, counting nested environments of the same name, or None."""
    begin, end = f"\\begin{{{name}}}", f"\\end{{{name}}}"
    depth, position = 1, start
    while depth:
        close = _find(text, end, position, missing)
        if close is None:
            return None
        depth += text.count(begin, position, close) - 1
        position = close
    return position


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
    position = text.find(ending, start)
    if position < 0:
        missing.add(ending)
        return None
    return position + len(ending)
