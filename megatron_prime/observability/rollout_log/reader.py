"""Reads rollout logs: the logged steps of a run, and the columns of a step, each loaded when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_prime.config.tables.observability.rollout_log import ROLLOUTS
from megatron_prime.observability.rollout_log.schema import COLUMNS, METADATA_KEY, FileInfo, step_of


def log_folder(source: Path) -> Path:
    """Return the folder of a rollout log, named itself or by its run_dir."""
    inside = source / ROLLOUTS
    return inside if inside.is_dir() else source


def logged_steps(folder: Path) -> dict[int, Path]:
    """Return the file of each logged step in a folder, ascending by step; empty without the folder.

    Files are not opened. A step in a running run may be removed, as the oldest, before it is read.
    """
    if not folder.is_dir():
        return {}
    found = {step: path for path in folder.iterdir() if (step := step_of(path)) is not None}
    return dict(sorted(found.items()))


class RolloutFile:
    """An opened file of a rollout log. Opening it reads its description alone.

    Args:
        path: the file.

    Raises:
        ValueError: there is no such file, it is damaged, has another schema version, or is another kind of file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._refusing():
            self._file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
            schema = self._file.schema_arrow
        description = (schema.metadata or {}).get(METADATA_KEY)
        if description is None:
            raise ValueError(f"{path} is a Parquet file, but not a rollout log of megatron_prime")
        try:
            self.info = FileInfo.decode(description)
        except ValueError as error:
            raise ValueError(f"rollout log {path} cannot be read: {error}") from error
        self._missing = [column for column in COLUMNS if column.is_later and column.name not in schema.names]
        for column in COLUMNS:
            if column in self._missing:
                continue
            if column.name not in schema.names or schema.field(column.name).type != column.type:
                raise ValueError(f"rollout log {path} has no column {column.name} of type {column.type}")

    @property
    def num_rows(self) -> int:
        """Number of responses."""
        return self._file.metadata.num_rows

    def table(self, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """Return some columns, by default all, of all responses.

        Raises:
            ValueError: the file is damaged.
        """
        with self._refusing():
            return self._complete(self._file.read(columns=self._present(columns)), columns)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield each response as a mapping from column to a Python value, with few of them in memory at a time.

        Raises:
            ValueError: the file is damaged.
        """
        for block in range(self._file.num_row_groups):
            with self._refusing():
                part = self._file.read_row_group(block, columns=self._present(columns))
                values = self._complete(part, columns).to_pylist()
            yield from values

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> "RolloutFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _present(self, columns: Sequence[str] | None) -> list[str] | None:
        """Return those of some columns that the file has."""
        missing = {column.name for column in self._missing}
        return None if columns is None else [name for name in columns if name not in missing]

    def _complete(self, table: pyarrow.Table, columns: Sequence[str] | None) -> pyarrow.Table:
        """Add null columns to a table for those that the file does not have yet."""
        for column in self._missing:
            if columns is None or column.name in columns:
                table = table.append_column(column.name, pyarrow.nulls(table.num_rows, column.type))
        return table

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn the errors of a damaged file into a ValueError with its name."""
        try:
            yield
        except FileNotFoundError as error:
            raise ValueError(f"rollout log {self.path} does not exist") from error
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"rollout log {self.path} is damaged or not Parquet ({reason}): remove it, or copy it again"
            ) from error
