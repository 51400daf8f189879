"""Reads parquet files."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_prime.data.rows.row import DataRow, OnBadRow

PARQUET_BATCH_ROWS = 512
"""Number of rows converted to Python objects at once; a row of a code data set can hold megabytes of tests."""


def read_parquet(path: Path, on_bad_row: OnBadRow) -> Iterator[DataRow]:
    """Yield the records of a parquet file as Python values."""
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            repeated = [name for name, count in Counter(table.schema_arrow.names).items() if count > 1]
            if repeated:
                raise ValueError(
                    f"data file {path} has several columns named {', '.join(repeated)}: rename them"
                )
            texts, numbers = (
                pyarrow.schema([each.with_type(_replaced(each.type, kind)) for each in table.schema_arrow])
                for kind in (pyarrow.string(), pyarrow.float64())
            )
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                if texts != table.schema_arrow:
                    # By way of text: 0.1 in 32 bits would else become 0.10000000149011612.
                    batch = batch.cast(texts).cast(numbers)
                for record in _records(batch):
                    number += 1
                    if isinstance(record, Exception):
                        on_bad_row(
                            ValueError(f"{path}, row {number}: a value cannot be represented: {record}")
                        )
                    else:
                        yield DataRow(record, path, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"data file {path} is not readable as parquet: {error}") from error


def _replaced(kind: pyarrow.DataType, number: pyarrow.DataType) -> pyarrow.DataType:
    """Return a type with another one in the place of 32-bit numbers, also within lists and objects."""
    if pyarrow.types.is_float32(kind):
        return number
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([part.with_type(_replaced(part.type, number)) for part in kind])
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_replaced(kind.value_type, number)))
    return kind


def _records(batch: pyarrow.RecordBatch) -> Iterator[Mapping[str, Any] | Exception]:
    """Yield each record, or why it has no representation: text that is not UTF-8, or a date beyond the year 9999."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield error
