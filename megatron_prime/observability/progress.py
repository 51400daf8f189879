"""Progress output for people: a status that stays on a terminal, plain lines in a log file, nothing on other ranks."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from megatron_prime.config.quiet import is_quiet
from megatron_prime.config.redaction import redact
from megatron_prime.observability.run_status import RunStatus, duration, progress_bar, work_text
from megatron_prime.observability.status_area import ERASE, Lines, StatusArea

Advance = Callable[[int], None]
"""Called with the number of units that have been completed since the last call."""

PLAIN_INTERVAL_S = 30.0
"""Minimum time between two plain lines of one phase, which keeps the log of a batch job short."""

_CONSOLE = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
"""Standard output. Plain output is never wrapped, so that tools can parse a log line by line.

Names of users such as `[red]` or `:key:` are shown as they are, in lines and in the cells and titles of tables.
"""
_AREA = StatusArea(lambda: sys.stdout)
"""The status of this process. All Progress objects share it, so that a line of one goes above the bar of another."""


def is_terminal(console: Console) -> bool:
    """Return whether the output goes to a terminal on which text can be replaced, and the user has not refused it.

    rich believes FORCE_COLOR, which CI systems set for logs, and takes NO_COLOR for a wish about colours alone.
    """
    return console.file.isatty() and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")


class Progress:
    """The progress output of one process.

    Args:
        enabled: False prints nothing; true on rank 0 only.
        console: Destination (default: standard output).
    """

    def __init__(self, enabled: bool = True, console: Console | None = None) -> None:
        self._console = console or _CONSOLE
        self._area = _AREA if console is None else StatusArea(lambda: console.file, lambda: console.size)
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
        if not self._enabled:
            return
        if self._area.is_shown:
            with self._console.capture() as text:
                self._console.print(table)
            self._area.print(text.get().rstrip("\n"))
        else:
            self._console.print(table)

    def step(self, step: int, num_steps: int, metrics: Mapping[str, float], names: Mapping[str, str]) -> None:
        """Print one line for a finished step; `names` maps each metric to show to its label.

        On a terminal it has as many of them as fit.
        """
        shown = [f"{label} {metrics[name]:.4g}" for name, label in names.items() if name in metrics]
        parts = [f"step {step}/{num_steps}", *shown]
        if is_terminal(self._console):
            while len(parts) > 1 and len("  ".join(parts)) > self._console.width:
                parts.pop()
        self.line("  ".join(parts))

    @contextmanager
    def run(
        self, name: str, num_steps: int, done: int, labels: Mapping[str, str]
    ) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """Show the status of a run on a terminal; yields a function to call with the metrics of each step.

        In a log file the lines of the steps say it all.

        Args:
            name: of the run's kind.
            num_steps: of the whole run.
            done: steps done by earlier attempts.
            labels: metrics to show, with their labels; the first has a trend.
        """
        status = RunStatus(name, num_steps, done, labels)
        if not (self._enabled and is_terminal(self._console)):
            yield status.step_done
            return
        with self._shown(status.lines):
            yield status.step_done

    @contextmanager
    def sampling(self, name: str) -> Iterator[None]:
        """Show how many responses are sampled and verified while a block runs that samples and verifies."""
        if not self._enabled:
            yield
            return
        since = time.monotonic()

        def text() -> str:
            return f"{name}: {work_text() or 'starting'}"

        if is_terminal(self._console):
            with self._shown(lambda _: [f"{text()}, {duration(time.monotonic() - since)}"]):
                yield
            return
        end = threading.Event()

        def report() -> None:
            while not end.wait(PLAIN_INTERVAL_S):
                self.line(text())

        threading.Thread(target=report, name="progress", daemon=True).start()
        try:
            yield
        finally:
            end.set()

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Show the progress of a phase of `total` units; yields a function to call with the units just completed."""
        if not self._enabled:
            yield lambda count: None
        elif is_terminal(self._console):
            bar = _Bar(name, total)
            with self._shown(bar.lines):
                yield bar.advance
        else:
            yield _PlainPhase(self.line, name, total).advance

    @contextmanager
    def _shown(self, lines: Lines) -> Iterator[None]:
        """Show a block of the status; what is printed by other means, such as warnings of libraries, goes above it."""
        self._area.add(lines)
        try:
            yield
        finally:
            self._area.remove(lines)

    def _print(self, text: str) -> None:
        if self._area.is_shown:
            self._area.print(redact(text))
        else:
            self._console.print(redact(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


SILENT = Progress(enabled=False)
"""Prints nothing; for callers that show no progress."""


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
            # Rank 0 may show its status on the same terminal.
            erase = ERASE if sys.stderr.isatty() else ""
            print(f"{erase}WARNING: rank {self._rank}: {text}", file=sys.stderr, flush=True)  # noqa: T201


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


class _Bar:
    """The progress of a phase on a terminal."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._since = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count

    def lines(self, columns: int) -> list[str]:
        seconds = time.monotonic() - self._since
        rest = f", {duration(seconds / self._done * (self._total - self._done))} left" if self._done else ""
        numbers = f" {self._done}/{self._total}{rest}"
        room = max(0, min(40, columns - len(self._name) - len(numbers) - 1))
        return [f"{self._name} {progress_bar(self._done, self._total, room)}{numbers}"]


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
