"""The file metrics.jsonl: one JSON object per step, the same after a resume as in an uninterrupted run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_prime.observability.durable import AppendedFile, make_private, replace_file

Record = dict[str, float | None]
"""`step` and the metrics of that step; a metric that is not finite is None."""


class JsonlHistory:
    """A file of records; each record is on disk when `log` returns."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Open a file for a run whose first logged step will be `resume_step` or later.

        Records of `resume_step` and later were written by an earlier attempt of the run after its last checkpoint. They
        are removed, and so is an incomplete last line.

        Raises:
            ValueError: If another line is damaged.
        """
        self.path = path
        make_private(path.parent)
        kept = [record for record in read_history(path) if _step_of(record) < resume_step]
        self._last_step = _step_of(kept[-1]) if kept else -1
        # Rewriting once at the start lets every later record be a plain append.
        replace_file(path, "".join(_encode(record) for record in kept))
        self._file = AppendedFile(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the record of a step; steps must increase. After an OSError, the next call writes it too."""
        assert step > self._last_step, f"step {step} was logged after step {self._last_step}"
        self._last_step = step
        self._file.append(_encode({"step": step, **metrics}).encode())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_history(path: Path) -> list[Record]:
    """Return all complete records; none if the file does not exist.

    A last line without a newline is ignored: the process was killed while it wrote it.

    Raises:
        ValueError: If another line is damaged.
    """
    if not path.exists():
        return []
    *lines, _incomplete = path.read_bytes().split(b"\n")
    return [_decode(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _decode(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); fix or remove the line") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f"{where} is not an object with an integer 'step'; fix or remove the line")
    return record


def finite_or_none(record: Mapping[str, float | None]) -> Record:
    """Replace values that are not finite by None: NaN and Infinity are not JSON, and readers reject the whole line."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in record.items()}


def _encode(record: Mapping[str, float | None]) -> str:
    return json.dumps(finite_or_none(record), allow_nan=False) + "\n"


def _step_of(record: Record) -> int:
    step = record["step"]
    assert isinstance(step, int)
    return step
