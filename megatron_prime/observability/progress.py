"""Progress output for people: progress bars on a terminal, plain lines in a log file, nothing on other ranks."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from megatron_prime.config.quiet import is_quiet
from megatron_prime.config.redaction import redact

Advance = Callable[[int], None]
"""Called with the number of units that have been completed since the last call."""

PLAIN_INTERVAL_S = 30.0
"""Minimum time between two plain lines of one phase, which keeps the log of a batch job short."""

_CONSOLE = Console(soft_wrap=True, highlight=False)
"""Standard output. All Progress objects of a process share it, so that a line of one goes above the bar of another.
Plain output is never wrapped, so that tools can parse a log line by line."""


class Progress:
    """The progress output of one process.

    Args:
        enabled: False prints nothing; true on rank 0 only.
        console: Destination (default: standard output).
    """

    def __init__(self, enabled: bool = True, console: Console | None = None) -> None:
        self._console = console or _CONSOLE
        self._enabled = enabled and not is_quiet()
        self._warns = enabled

    def line(self, text: str) -> None:
        """Print one line without markup, above the progress bars if there are any."""
        if self._enabled:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a line that begins with WARNING."""
        if self._warns:
            self._print(f"WARNING: {text}")

    def table(self, table: Table) -> None:
        """Print a table."""
        if self._enabled:
            self._console.print(table)

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float], names: Mapping[str, str]) -> None:
        """Print one line for a finished step; `names` maps each metric to show to its label."""
        shown = [f"{label} {metrics[name]:.4g}" for name, label in names.items() if name in metrics]
        self.line("  ".join([f"step {step}/{num_steps}", *shown]))

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Show the progress of a phase of `total` units; yields a function to call with the units just completed."""
        if not self._enabled:
            yield lambda count: None
        elif self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(name, total=total)
                yield lambda count: bar.advance(task, count)
        else:
            yield _PlainPhase(self.line, name, total).advance

    def _print(self, text: str) -> None:
        self._console.print(redact(text), markup=False, highlight=False, soft_wrap=True)

    def _bar(self) -> RichProgress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # A finished bar is removed, so that only the lines of steps stay on the screen.
        return RichProgress(*columns, console=self._console, transient=True)


class _WarningHandler(logging.Handler):
    """Sends log records to Progress on rank 0, and to standard error with the rank's number on the other ranks."""

    def __init__(self, progress: Progress, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress
        self._rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        text = redact(self.format(record))
        if self._rank == 0:
            self._progress.warn(text)
        else:
            # Progress is silent here, but what a library module logs may have happened on this rank alone.
            print(f"WARNING: rank {self._rank}: {text}", file=sys.stderr, flush=True)  # noqa: T201


def route_warnings(progress: Progress, rank: int) -> None:
    """Show the warnings that modules of this package log, in the same form as those given to `Progress.warn`.

    A second call replaces the handler of the first one.
    """
    logger = logging.getLogger("megatron_prime")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _WarningHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_WarningHandler(progress, rank))
    # Dependencies may add handlers to the root logger, which would show every warning twice.
    logger.propagate = False


class _PlainPhase:
    """Prints the progress of a phase every PLAIN_INTERVAL_S seconds, so that a short phase prints nothing."""

    def __init__(self, print_line: Callable[[str], None], name: str, total: int) -> None:
        self._print_line = print_line
        self._name = name
        self._total = total
        self._done = 0
        self._last_printed = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last_printed >= PLAIN_INTERVAL_S:
            self._last_printed = now
            self._print_line(f"{self._name}: {self._done}/{self._total}")
