"""Writes the file of one step: the whole file is there, or none."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.rollout_log.schema import COLUMN_NAMES, COLUMNS, FileInfo, arrow_schema

ROWS_PER_BLOCK = 64
"""Number of responses in a row group: a reader may load one of them alone."""
_FLOAT_COLUMNS = [
    column.name
    for column in COLUMNS
    if pyarrow.types.is_list(column.type) and pyarrow.types.is_float32(column.type.value_type)
]
_TEXT_COLUMNS = [column.name for column in COLUMNS if pyarrow.types.is_string(column.type)]


def encode_rollouts(info: FileInfo, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of a file.

    Args:
        info: description of the file.
        rows: one mapping from column to value per response; a missing optional column is null. Lists may be arrays.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMN_NAMES}
    for row in rows:
        assert row.keys() <= columns.keys(), f"no such columns: {row.keys() - columns.keys()}"
        for name, values in columns.items():
            values.append(row.get(name))
    for name in _TEXT_COLUMNS:
        columns[name] = [_encodable(text) for text in columns[name]]
    schema = arrow_schema(info)
    arrays = [pyarrow.array(columns[field.name], type=field.type) for field in schema]
    table = pyarrow.Table.from_arrays(arrays, schema=schema)
    table.validate()
    sink = pyarrow.BufferOutputStream()
    # pyarrow also takes lists of columns, which its type stubs do not know.
    options: dict[str, Any] = {
        "use_dictionary": [name for name in COLUMN_NAMES if name not in _FLOAT_COLUMNS],
        # Floats of similar size differ in their last bytes alone, which compresses if bytes of equal significance
        # stand together.
        "use_byte_stream_split": [f"{name}.list.element" for name in _FLOAT_COLUMNS],
        # A reader finds flipped bits instead of showing them.
        "write_page_checksum": True,
    }
    pyarrow.parquet.write_table(table, sink, ROWS_PER_BLOCK, compression="zstd", **options)
    return sink.getvalue().to_pybytes()


def write_rollouts(path: Path, info: FileInfo, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a file atomically and return its size in bytes; see `encode_rollouts`.

    Raises:
        OSError: the file cannot be written.
    """
    content = encode_rollouts(info, rows)
    replace_file(path, content)
    return len(content)


def _encodable(text: str | None) -> str | None:
    """Return a text with each lone surrogate, which JSON allows and UTF-8 does not, as a question mark."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")
