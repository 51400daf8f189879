"""Describes an exception of a user's code in one line and by its traceback, both with the place in that code."""

import asyncio
import traceback
from pathlib import Path
from types import TracebackType

MAX_DETAIL = 500
"""Characters of a description."""
MAX_TRACEBACK = 20_000
"""Characters of a traceback; of a longer one the middle is left out."""
_CALLERS = (str(Path(__file__).parents[1]), str(Path(asyncio.__file__).parent), "<frozen importlib")
"""Begins of the files that call a user's code: this package, the loop of async functions, and the import system."""


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return an exception in one line, with the last place in the user's code, and its traceback.

    Both begin where this package calls other code, if it does.
    """
    trace = _outside(error.__traceback__) or error.__traceback__
    # The exception's own __str__ may raise, which this function handles.
    text = "".join(traceback.format_exception_only(error))[: 8 * MAX_DETAIL]
    text = " ".join(text.split())[:MAX_DETAIL]
    places = traceback.extract_tb(trace)
    if places:
        # A library that the code calls is not where its author looks first.
        place = [each for each in places if each.filename == places[0].filename][-1]
        text = f"{text} ({place.filename}, line {place.lineno})"
    lines = "".join(traceback.format_exception(type(error), error, trace))
    # Twice: a message of any length must not cost the time of the call, and `plain` may write a character as several.
    return plain(text), _shortened(plain(_shortened(lines))).rstrip()


def describe_fault(error: BaseException) -> str:
    """Return why a user's code cannot be used, with its traceback.

    A ValueError that this package raised itself is its answer to a wrong setting: it needs neither place nor traceback.
    """
    if isinstance(error, ValueError) and _outside(error.__traceback__) is None:
        return plain(" ".join(str(error).split()))
    return "\n".join(describe_error(error))


def plain(text: str) -> str:
    """Return a text that every log can hold: without halves of characters, and what would move a terminal's cursor."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in whole)


def _shortened(lines: str) -> str:
    if len(lines) <= MAX_TRACEBACK:
        return lines
    return f"{lines[: MAX_TRACEBACK // 2]}\n...\n{lines[-MAX_TRACEBACK // 2 :]}"


def _outside(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback behind all callers; None if nothing is behind."""
    inner = trace
    while inner is not None:
        file = inner.tb_frame.f_code.co_filename
        if not file.startswith(_CALLERS) and not file.endswith("importlib/__init__.py"):
            return inner
        inner = inner.tb_next
    return None
