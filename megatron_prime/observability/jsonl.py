"""metrics.jsonl: one JSON object a step, kept such that a resumed run leaves the file of an unbroken one."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_prime.observability.durable import replace_file

Record = dict[str, float | None]
"""`step` and the metrics of that step; a metric that was not finite is None."""


class JsonlHistory:
    """Appends records to a file; each is on disk when `log` returns."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Open `path` for a run whose first logged step will be `resume_step` or later.

        Records of that step and later come from a life of the run that its checkpoint does not know: they are
        removed, and so is a last line that a kill left torn. Raises ValueError if another line is damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_history(path) if _step_of(record) < resume_step]
        self._last_step = _step_of(kept[-1]) if kept else -1
        replace_file(path, "".join(_encode(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record. Steps must increase: one record a step."""
        assert step > self._last_step, f"step {step} was logged after step {self._last_step}"
        self._file.write(_encode({"step": step, **metrics}))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._last_step = step

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
    """All complete records; none when the file does not exist.

    A last line without its newline was torn by a kill and is left out. Raises ValueError for other damage.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_decode(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _decode(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); mend or remove the line") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f"{where} is not an object with a whole number 'step'; mend or remove the line")
    return record


def finite_or_none(record: Mapping[str, float | None]) -> Record:
    """The record with None for what is not finite: NaN and Infinity are no JSON, and readers refuse the whole line."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in record.items()}


def _encode(record: Mapping[str, float | None]) -> str:
    return json.dumps(finite_or_none(record), allow_nan=False) + "\n"


def _step_of(record: Record) -> int:
    step = record["step"]
    assert isinstance(step, int)
    return step
