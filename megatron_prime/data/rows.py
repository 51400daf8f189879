"""Rows of jsonl and parquet files, and the fields inside them, with errors that name the file and the row.

pyarrow and json read the files directly, not `datasets`: nothing is cached on disk (many ranks read at once), nothing
is asked of a hub, and a bad row keeps its number.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where it stands."""

    fields: Mapping[str, Any]
    path: Path
    number: int
    """From 1; the line number of a jsonl file, the record number of a parquet file."""

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


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of one file, in order; blank lines of a jsonl file are passed over.

    Raises:
        ValueError: missing, of an unknown type, unreadable, or a line that is not a JSON object.
    """
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise ValueError(f"data file {path} {what} (working directory {Path.cwd()})")
    if path.suffix in (".jsonl", ".json"):
        return _read_jsonl(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise ValueError(f"data file {path} has unknown type {path.suffix!r}: use .jsonl or .parquet")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
                raise ValueError(f"{path}, row {number}: not a JSON object ({error})") from error
            if not isinstance(fields, dict):
                raise ValueError(
                    f"{path}, row {number}: a {type(fields).__name__} where a JSON object should be"
                )
            yield Row(fields, path, number)


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, path, number)
    except pyarrow.ArrowException as error:
        raise ValueError(f"data file {path} is not readable as parquet: {error}") from error
