"""Rows of jsonl, parquet and csv files, and the fields inside them, with errors that name the file and the row.

pyarrow and json read the files directly, not `datasets`: nothing is cached on disk (many ranks read at once), nothing
is asked of a hub, and a bad row keeps its number.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

PARQUET_BATCH_ROWS = 512
"""Rows that are Python objects at one time; a row of code problems can hold megabytes of tests."""
OnBadRow = Callable[[ValueError], None]
"""Is told of a row that is none; what it raises ends the reading."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where it stands."""

    fields: Mapping[str, Any]
    path: Path
    number: int
    """From 1; the line number of a jsonl file, the record number of any other."""

    def error(self, reason: str) -> ValueError:
        """An error that says which row of which file does not fit."""
        return ValueError(f"{self.path}, row {self.number}: {reason}")

    def field(self, dotted: str) -> Any:  # noqa: ANN401 - JSON values
        """The value at `dotted`, descending by dots; a column that holds JSON text is parsed where needed.

        A column whose own name has dots wins over descending.

        Raises:
            ValueError: no such field, or one that cannot be descended into; names what is there.
        """
        if dotted in self.fields:
            return self.fields[dotted]
        value: Any = self.fields
        walked: list[str] = []
        for name in dotted.split("."):
            value = self._as_mapping(value, walked, dotted)
            if name not in value:
                where = f" in {'.'.join(walked)!r}" if walked else ""
                raise self.error(f"no field {name!r}{where} (asked for {dotted!r}); there is {sorted(value)}")
            value = value[name]
            walked.append(name)
        return value

    def _as_mapping(self, value: object, walked: list[str], dotted: str) -> Mapping[str, Any]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise self.error(
                    f"{'.'.join(walked)!r} is text that is not JSON ({error}), so {dotted!r} cannot be found in it"
                ) from error
        if not isinstance(value, Mapping):
            raise self.error(
                f"{'.'.join(walked)!r} is a {type(value).__name__}: {dotted!r} cannot be found in it"
            )
        return value


def read_rows(path: Path, on_bad_row: OnBadRow | None = None) -> Iterator[Row]:
    """Rows of one file, in order; blank lines of a jsonl file are passed over.

    Args:
        path: ends in .jsonl, .json (a list of objects, or one object a line), .parquet or .csv (a line of column names
            first).
        on_bad_row: is given the error of a line that holds no record; without it, the error is raised.

    Raises:
        ValueError: missing, of an unknown type, unreadable, or a line that is not a JSON object.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise ValueError(f"data file {path} {what} (working directory {Path.cwd()})")
    if path.suffix not in readers:
        raise ValueError(f"data file {path} has unknown type {path.suffix!r}: use .jsonl, .parquet or .csv")
    return readers[path.suffix](path, on_bad_row or _raise)


def _raise(error: ValueError) -> None:
    raise error


def _read_jsonl(path: Path, on_bad_row: OnBadRow) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, row {number}"
            try:
                fields = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
                on_bad_row(ValueError(f"{where}: not a JSON object ({error})"))
                continue
            if isinstance(fields, dict):
                yield Row(fields, path, number)
            else:
                on_bad_row(ValueError(f"{where}: a {type(fields).__name__} where a JSON object should be"))


def _read_json(path: Path, on_bad_row: OnBadRow) -> Iterator[Row]:
    """A list, read as a whole; anything else as lines."""
    with path.open("rb") as file:
        is_list = file.read(1024).lstrip()[:1] == b"["
    if not is_list:
        yield from _read_jsonl(path, on_bad_row)
        return
    try:
        records = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"data file {path} is not readable as JSON: {error}") from error
    for number, fields in enumerate(records, start=1):
        if isinstance(fields, dict):
            yield Row(fields, path, number)
        else:
            reason = f"a {type(fields).__name__} where a JSON object should be"
            on_bad_row(ValueError(f"{path}, row {number}: {reason}"))


def _read_parquet(path: Path, on_bad_row: OnBadRow) -> Iterator[Row]:
    del on_bad_row  # A record that parquet can read at all is an object.
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, path, number)
    except pyarrow.ArrowException as error:
        raise ValueError(f"data file {path} is not readable as parquet: {error}") from error


def _read_csv(path: Path, on_bad_row: OnBadRow) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for number, fields in enumerate(reader, start=1):
                if None in fields or None in fields.values():
                    count = sum(value is not None for name, value in fields.items() if name is not None)
                    count += len(fields.get(None) or ())
                    reason = (
                        f"{count} values for the {len(reader.fieldnames or ())} columns of the first line"
                    )
                    on_bad_row(ValueError(f"{path}, row {number}: {reason}"))
                else:
                    yield Row(fields, path, number)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"data file {path} is not readable as csv: {error}") from error
