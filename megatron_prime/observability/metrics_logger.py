"""Writes metrics to all their destinations."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_prime.config.tables.observability.logging import Backend
from megatron_prime.observability.jsonl import JsonlHistory, Record, read_history
from megatron_prime.observability.loggers.backends import open_loggers
from megatron_prime.observability.loggers.protocol import Details, RunInfo, StepRecord

_LOG = logging.getLogger(__name__)


class MetricsLogger:
    """Writes `run_dir/metrics.jsonl`, and hands each record to the loggers of logging.backends.

    metrics.jsonl is the truth: an error of it is raised, while the failure of a logger is a warning, given once. Only
    rank 0 creates a MetricsLogger.

    Args:
        run_dir: Folder of the run.
        resume_step: First step that this attempt of the run will log. Later records of earlier attempts are dropped, so
            that the files equal those of an uninterrupted run, except for times.
        backends: Names of the loggers.
        info: Shown by the loggers; None shows the folder's name alone.
        details: Returns the histograms and samples of a step, if it has some.
        warn: Receives one line for each logger that fails.
    """

    def __init__(
        self,
        run_dir: Path,
        resume_step: int = 0,
        *,
        backends: Sequence[Backend] = ("tensorboard",),
        info: RunInfo | None = None,
        details: Callable[[int], Details] = lambda _: Details(),
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self._warn = warn
        self._details = details
        self._failed: set[str] = set()
        path = run_dir / "metrics.jsonl"
        self._history = JsonlHistory(path, resume_step)

        def earlier() -> list[Record]:
            return [record for record in read_history(path) if (record["step"] or 0) < resume_step]

        # All destinations drop the same steps on a resume, so that they always agree.
        known = info or RunInfo(run_dir, name=run_dir.name)
        self._loggers = open_loggers(backends, known, resume_step, earlier, warn)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step; steps must increase. The records of files are on disk when this returns.

        Raises:
            OSError: metrics.jsonl cannot be written. The next call writes its record too.
        """
        with ExitStack() as stack:  # An error of one file does not keep the others from their records.
            record = StepRecord(step, dict(metrics), self._details(step))
            for logger in self._loggers:
                stack.callback(self._try, type(logger).__name__, lambda one=logger: one.log(record))
            self._history.log(step, metrics)

    def close(self) -> None:
        """Close all destinations; a second call does nothing."""
        with ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(self._try, type(logger).__name__, logger.close)
            self._history.close()

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            if name not in self._failed:
                self._failed.add(name)
                self._warn(
                    f"{name}: {error}. Training continues, metrics.jsonl has every record, and the logger tries "
                    "again with each step. This warning is given once"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
