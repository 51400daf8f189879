"""Every sink of the metrics behind one call."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_prime.observability.jsonl import JsonlHistory
from megatron_prime.observability.tensorboard import TensorBoardWriter


class MetricsLogger:
    """Writes `run_dir/metrics.jsonl` and `run_dir/tensorboard/`. Rank 0 alone makes one.

    `resume_step` is the first step that this life of the run will log: what the files hold from there on is
    dropped, so that after a kill and a resume they equal an unbroken run's (wall times and timings apart).
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        self._history = JsonlHistory(run_dir / "metrics.jsonl", resume_step)
        self._tensorboard = TensorBoardWriter(run_dir / "tensorboard", resume_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step; steps must increase. When it returns, a kill can no longer lose the record."""
        self._history.log(step, metrics)
        self._tensorboard.log(step, metrics)

    def close(self) -> None:
        """Close every file; a second call does nothing."""
        self._history.close()
        self._tensorboard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
