"""Reads csv files."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_prime.data.rows.row import DataRow, OnBadRow

_LONGEST_FIELD = 2**31 - 1
"""Limit on the characters of a field. Python's own of 131072 is less than a problem with its tests has."""
_UNDECODED = re.compile("[\udc80-\udcff]")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the rows below the line of column names; all values are text."""
    csv.field_size_limit(_LONGEST_FIELD)
    # Spreadsheets write a byte order mark, which would become part of the first column's name. The csv module
    # requires newline="" to read line breaks inside quoted values. Bytes that are not UTF-8 make a bad row below.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        names: list[str] | None = None
        number, last_line = 0, 0
        while True:
            reason = None
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                values, reason = [], f"not readable as csv: {error}"
            first_line, last_line = last_line + 1, reader.line_num
            if names is None:
                if reason is not None:
                    raise ValueError(f"data file {path} is {reason}")
                if values:
                    names = values
                    _check_names(path, names)
                continue
            if not values and reason is None:
                continue
            number += 1
            reason = reason or _row_fault(names, values)
            if reason is None:
                yield DataRow(dict(zip(names, values, strict=True)), path, number)
                continue
            # A quotation mark that opens no value swallows lines.
            lines = f" (lines {first_line} to {last_line})" if last_line > first_line else ""
            on_bad_row(ValueError(f"{path}, row {number}: {reason}{lines}"))


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise ValueError(f"data file {path} has several columns named {', '.join(repeated)}: rename them")
    if len(names) == 1:
        for separator, word in _OTHER_SEPARATORS.items():
            if separator in names[0]:
                raise ValueError(
                    f"data file {path} is not readable as csv: its values seem to be separated by {word}; write it "
                    "with commas"
                )


def _row_fault(names: Sequence[str], values: Sequence[str]) -> str | None:
    if len(values) != len(names):
        return f"{len(values)} values for the {len(names)} columns of the first line"
    if list(values) == list(names):
        return "the column names again: were files joined?"
    if any(not value.isascii() and _UNDECODED.search(value) for value in values):
        return "it is not UTF-8 text"
    return None
