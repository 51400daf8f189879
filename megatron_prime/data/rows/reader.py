"""Reads the rows of a data file of any type."""

from collections.abc import Iterator
from pathlib import Path

from megatron_prime.data.files import data_file_fault
from megatron_prime.data.rows.csv_files import read_csv
from megatron_prime.data.rows.json_files import read_json, read_jsonl
from megatron_prime.data.rows.parquet_files import read_parquet
from megatron_prime.data.rows.row import DataRow, OnBadRow


def read_rows(path: Path, on_bad_row: OnBadRow | None = None) -> Iterator[DataRow]:
    """Yield the rows of one file, in order; blank lines of a jsonl file are skipped.

    Args:
        path: A file that ends in .jsonl, .json (a list of objects, an object that has the list as "data", or one object
            per line), .parquet or .csv (with a header line).
        on_bad_row: Called with the error of a line that holds no record; by default the error is raised.

    Raises:
        ValueError: If the file is missing, unreadable or of an unknown type, or a line holds no record.
    """
    readers = {".jsonl": read_jsonl, ".json": read_json, ".parquet": read_parquet, ".csv": read_csv}
    fault = data_file_fault(path)
    if fault is not None:
        raise ValueError(f"data file {path} {fault}")
    return readers[path.suffix](path, on_bad_row or _raise)


def _raise(error: ValueError) -> None:
    raise error
