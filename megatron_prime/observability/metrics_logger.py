"""Writes metrics to all their destinations."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_prime.observability.jsonl import JsonlHistory
from megatron_prime.observability.tensorboard import TensorBoardWriter


class MetricsLogger:
    """Writes `run_dir/metrics.jsonl` and `run_dir/tensorboard/`. Only rank 0 creates one.

    Args:
        run_dir: Folder of the run.
        resume_step: First step that this attempt of the run will log. Later records of earlier attempts are dropped, so
            that the files equal those of an uninterrupted run, except for times.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        # Both files drop the same steps on a resume, so that they always agree.
        self._history = JsonlHistory(run_dir / "metrics.jsonl", resume_step)
        self._tensorboard = TensorBoardWriter(run_dir / "tensorboard", resume_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step; steps must increase. The record is on disk when this returns.

        Raises:
            OSError: a file cannot be written. The next call writes its record too.
        """
        with ExitStack() as stack:  # An error of one file does not keep the other from its record.
            stack.callback(self._tensorboard.log, step, metrics)
            self._history.log(step, metrics)

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        with ExitStack() as stack:
            stack.callback(self._tensorboard.close)
            self._history.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
