r"""Extraction of the final answer of a response: its last `\boxed{}` or `\fbox{}` with balanced braces."""

import re

_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$.,;:]|\\[,;:!() \[\]]|\\quad|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)
_POWER = re.compile(r"\s*[\^_]\s*(?:\{[^{}]*\}|\\[A-Za-z]+|\w)")
"""A power or an index behind a box, which changes the value: `\\boxed{18}^2`."""

MAX_TAIL_CHARS = 20_000
"""Length of the end of a response that is searched; a box before it does not count as the final answer."""


def last_boxed(text: str) -> str | None:
    r"""Return the contents of the last complete box, or None if there is none.

    Adjacent boxes with only punctuation, "and" or "or" between them are one answer of several parts, and their
    contents are joined: `\boxed{2} or \boxed{3}` gives `2 or 3`, other separators give `2, 3`. Offering two answers to
    a question that has one is therefore wrong. If the last box is empty, so is the result.
    """
    boxes = _complete_boxes(text[-MAX_TAIL_CHARS:])
    if not boxes:
        return None
    tail = text[-MAX_TAIL_CHARS:]
    start, answer = boxes[-1][0], boxes[-1][2]
    if not answer.strip():
        return answer
    if behind := _POWER.match(tail, boxes[-1][1]):
        answer = f"{{{answer}}}{behind[0].strip()}"
    for previous_start, previous_end, content in reversed(boxes[:-1]):
        between = tail[previous_end:start]
        if _BETWEEN_BOXES.fullmatch(between) is None or "\n\n" in between:
            break  # a box in another sentence or paragraph is an intermediate result
        separator = " or " if re.search(r"\bor\b", between) else ", "
        start, answer = previous_start, content + separator + answer
    return answer


def unwrap_boxed(text: str) -> str:
    """Return the contents if all of `text` is one box, as in some ground truths; otherwise return `text`."""
    stripped = text.strip().strip("$").strip()
    boxes = _complete_boxes(stripped)
    if len(boxes) == 1 and boxes[0][0] == 0 and boxes[0][1] == len(stripped):
        return boxes[0][2]
    return text


def _complete_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Return (start, end, contents) of each complete outermost box, in one pass over `text`.

    Boxes inside are replaced by their contents, as groups: `\boxed{\boxed{18}^2}` is `{18}^2`.
    """
    starts = {opening.end() - 1: opening.start() for opening in _OPENING.finditer(text)}
    open_braces: list[int] = []
    boxes: list[tuple[int, int, str]] = []
    index = 0
    while index < len(text):
        if text[index] == "{":
            open_braces.append(index)
        elif text[index] == "}" and open_braces:
            brace = open_braces.pop()
            if brace in starts:
                inner = []
                while boxes and boxes[-1][0] > brace:
                    inner.append(boxes.pop())
                boxes.append((starts[brace], index + 1, _contents(text, brace + 1, index, inner[::-1])))
        # A backslash escapes the next character: \{ and \} are not grouping braces.
        index += 2 if text[index] == "\\" else 1
    return boxes


def _contents(text: str, start: int, end: int, inner: list[tuple[int, int, str]]) -> str:
    """Return the text of a box, in which the boxes inside are replaced; boxes beside each other alone are a list."""
    around = "".join(
        text[previous:following]
        for previous, following in zip(
            [start, *(box[1] for box in inner)], [*(box[0] for box in inner), end], strict=True
        )
    )
    if inner and _BETWEEN_BOXES.fullmatch(around):
        return inner[-1][2] if len(inner) == 1 else ", ".join(box[2] for box in inner)
    content = ""
    for box_start, box_end, box_content in inner:
        content += f"{text[start:box_start]}{{{box_content}}}"
        start = box_end
    return content + text[start:end]


def closing_brace(text: str, start: int) -> int | None:
    r"""Return the index of the brace that closes the one just before `start`, or None; `\{` and `\}` do not count."""
    depth = 1
    index = start
    while index < len(text):
        character = text[index]
        if character == "\\":
            index += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index
        index += 1
    return None
