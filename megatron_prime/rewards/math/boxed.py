r"""Extraction of the final answer of a response: its last `\boxed{}` or `\fbox{}` with balanced braces."""

import re

_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$.,;:]|\\[,;:!() \[\]]|\\quad|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)

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
    """Return (start, end, contents) of each complete outermost box, in one pass over `text`.

    The contents of a box with boxes inside are those of the last inner box.
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
                content = text[brace + 1 : index]
                if boxes and boxes[-1][0] > brace:
                    content = boxes[-1][2]
                while boxes and boxes[-1][0] > brace:
                    boxes.pop()
                boxes.append((starts[brace], index + 1, content))
        # A backslash escapes the next character: \{ and \} are not grouping braces.
        index += 2 if text[index] == "\\" else 1
    return boxes


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
