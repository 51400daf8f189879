"""Rows of jsonl, json, parquet and csv files, with errors that name the file and the row.

Files are read by json, csv and pyarrow directly and not by `datasets`: nothing is cached on disk, where many ranks
would write at once, no hub is contacted, and an invalid row can be named by its number.

- `row`: a row and its fields
- `reader`: reads a file of any type
- `json_text`: parses JSON strictly
- `metadata`: the columns of a row besides those of the problem, for verifiers and environments
- `json_files`, `csv_files`, `parquet_files`: read one type of file each
"""

from megatron_prime.data.rows.metadata import MetadataReader
from megatron_prime.data.rows.reader import read_rows
from megatron_prime.data.rows.row import DataRow, MissingFieldError, RenderingError, SettingsError

__all__ = ["DataRow", "MetadataReader", "MissingFieldError", "RenderingError", "SettingsError", "read_rows"]
