"""Reads the rows of jsonl, parquet and csv files, with errors that name the file and the row.

Files are read by json and pyarrow directly and not by `datasets`: nothing is cached on disk, where many ranks would
write at once, no hub is contacted, and an invalid row can be named by its number.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_prime.data.files import data_file_fault

PARQUET_BATCH_ROWS = 512
"""Number of rows converted to Python objects at once; a row of a code data set can hold megabytes of tests."""
OnBadRow = Callable[[ValueError], None]
"""Called with the error of a line that holds no record; an exception that it raises ends the reading."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """One record and its position in a file."""

    fields: Mapping[str, Any]
    path: Path
    number: int
    """Position from 1: the line number in a jsonl file, the record number in any other file."""

    def error(self, reason: str) -> ValueError:
        """Return an error that names the file and the row."""
        return ValueError(f"{self.path}, row {self.number}: {reason}")

    def field(self, dotted: str) -> Any:  # noqa: ANN401 - JSON values
        """Return the value at a path of names separated by dots.

        Text on the way is parsed as JSON. A column whose own name contains the dots takes precedence.

        Raises:
            ValueError: If there is no such field; the error lists the fields that exist.
        """
        if dotted in self.fields:
            return self.fields[dotted]
        value: Any = self.fields
        walked: list[str] = []
        for name in dotted.split("."):
            value = self._as_mapping(value, walked, dotted)
            if name not in value:
                where = f" in {'.'.join(walked)!r}" if walked else ""
                raise self.error(
                    f"no field {name!r}{where} (looking for {dotted!r}); the fields are {sorted(value)}"
                )
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


def read_rows(path: Path, on_bad_row: OnBadRow | None = None) -> Iterator[DataRow]:
    """Yield the rows of one file, in order; blank lines of a jsonl file are skipped.

    Args:
        path: A file that ends in .jsonl, .json (a list of objects, or one object per line), .parquet or .csv (with a
            header line).
        on_bad_row: Called with the error of a line that holds no record; by default the error is raised.

    Raises:
        ValueError: If the file is missing, unreadable or of an unknown type, or a line holds no record.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}
    fault = data_file_fault(path)
    if fault is not None:
        raise ValueError(f"data file {path} {fault}")
    return readers[path.suffix](path, on_bad_row or _raise)


def _raise(error: ValueError) -> None:
    raise error


def _read_jsonl(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
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
                yield DataRow(fields, path, number)
            else:
                on_bad_row(ValueError(f"{where}: {_not_an_object(fields)}"))


def _read_json(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the rows of a JSON list, which is read as a whole, or of a file with one object per line."""
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
            yield DataRow(fields, path, number)
        else:
            on_bad_row(ValueError(f"{path}, row {number}: {_not_an_object(fields)}"))


def _not_an_object(value: object) -> str:
    return f"a {type(value).__name__} where a JSON object should be"


def _read_parquet(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    del on_bad_row  # every record of a parquet file is an object
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield DataRow(fields, path, number)
    except pyarrow.ArrowException as error:
        raise ValueError(f"data file {path} is not readable as parquet: {error}") from error


def _read_csv(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    try:
        # Spreadsheets write a byte order mark, which would become part of the first column's name. The csv module
        # requires newline="" to read line breaks inside quoted values.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for number, fields in enumerate(reader, start=1):
                # DictReader puts surplus values under the key None, and None where values are missing.
                if None in fields or None in fields.values():
                    count = sum(value is not None for name, value in fields.items() if name is not None)
                    count += len(fields.get(None) or ())
                    reason = (
                        f"{count} values for the {len(reader.fieldnames or ())} columns of the first line"
                    )
                    on_bad_row(ValueError(f"{path}, row {number}: {reason}"))
                else:
                    yield DataRow(fields, path, number)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"data file {path} is not readable as csv: {error}") from error
