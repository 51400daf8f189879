"""Reads jsonl and json files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_prime.data.rows.json_text import parse_json, parse_json_at
from megatron_prime.data.rows.row import DataRow, OnBadRow

_BOM = b"\xef\xbb\xbf"
_ROWS_KEY = "data"
"""Key under which many tools write the list of rows of a JSON file."""
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
"""A string or a bracket of JSON text; brackets within strings do not count."""


def read_jsonl(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the objects of a file, one per line; blank lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                fields = parse_json(line.removeprefix(_BOM).decode("utf-8"))
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
                on_bad_row(ValueError(f"{path}, row {number}: not a JSON object ({error}){_hint(line)}"))
                continue
            yield from _row(path, number, fields, on_bad_row)


def read_json(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the rows of a JSON list, which is read as a whole, or of a file with one object per line."""
    first, is_only = _first_line(path)
    if first[:1] == b"[":
        yield from _list_rows(path, _text_of(path), on_bad_row)
        return
    # An object may be a row, the first of several rows, or hold the rows.
    try:
        record = parse_json(_text_of(path)) if is_only or first == b"{" else None
    except ValueError as error:
        if is_only:
            record = None  # a bad row
        else:
            raise ValueError(
                f"data file {path} is not readable as JSON: it holds neither a list of objects nor one object per line "
                f"({error})"
            ) from error
    if isinstance(record, dict):
        yield from _object_rows(path, record, on_bad_row)
    else:
        yield from read_jsonl(path, on_bad_row)


def _first_line(path: Path) -> tuple[bytes, bool]:
    """Return the first line that is not blank, without surrounding space, and whether it is the only one."""
    with path.open("rb") as file:
        lines = (line.removeprefix(_BOM).strip() for line in file)
        lines = (line for line in lines if line)
        return next(lines, b""), next(lines, None) is None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data file {path} is not readable as JSON: {error}") from error


def _row(path: Path, number: int, fields: object, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    if isinstance(fields, dict):
        yield DataRow(fields, path, number)
    else:
        on_bad_row(
            ValueError(f"{path}, row {number}: a {type(fields).__name__} where a JSON object should be")
        )


def _object_rows(path: Path, record: dict[str, Any], on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the rows that an object holds, or the object as the only row."""
    lists = [name for name, value in record.items() if _holds_rows(value)]
    if _ROWS_KEY in lists:
        for number, fields in enumerate(record[_ROWS_KEY], start=1):
            yield from _row(path, number, fields, on_bad_row)
    elif lists and len(record) == len(lists):
        raise ValueError(
            f"data file {path} is not readable as JSON: it is an object of lists {lists}; write the list of one of "
            "them to a file of its own"
        )
    else:
        yield DataRow(record, path, 1)


def _holds_rows(value: object) -> bool:
    """Return whether a value is a list of objects that are no chat messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "content" not in first and "value" not in first


def _list_rows(path: Path, text: str, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the elements of a JSON list one by one, so that a damaged one is a bad row and not the end."""

    def fault(reason: object) -> ValueError:
        return ValueError(f"data file {path} is not readable as JSON: {reason}")

    position, number = _after_space(text, text.index("[") + 1), 0
    if text[position : position + 1] == "]":
        return
    while True:
        number += 1
        try:
            fields, end = parse_json_at(text, position)
        except ValueError as error:
            found = _end_of_element(text, position)
            if found is None:
                raise fault(error) from error
            end = found
            on_bad_row(ValueError(f"{path}, row {number}: not a JSON object ({error})"))
        else:
            yield from _row(path, number, fields, on_bad_row)
        end = _after_space(text, end)
        separator = text[end : end + 1]
        if separator == "]":
            break
        if separator != ",":
            raise fault(f"no comma behind its element {number} (char {end})")
        position = _after_space(text, end + 1)
    if _after_space(text, end + 1) != len(text):
        raise fault(f"text follows its list (char {end + 1})")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _end_of_element(text: str, start: int) -> int | None:
    """Return the end of the object or list that starts here, by its brackets; None if it has no end."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        if token.start() == start and token[0] not in "[{":
            return None
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
            if depth <= 0:
                return token.end() if depth == 0 else None
    return None


def _hint(line: bytes) -> str:
    return "; a list of rows belongs to a file that ends in .json" if line.strip() == b"[" else ""
