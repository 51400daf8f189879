"""Outcomes in a file that only grows: each is on disk as soon as its check has ended, and a later run continues."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu_checks.lines import Line, Outcome

INTERRUPTED = "gpu_check was ended while this check ran"


class ResultFile:
    """The outcomes of all runs in one folder, one JSON object per line, as of the end of each check.

    Args:
        path: of the file, which is created when the first outcome is known.
        key: commit, device and sizes of this run. Outcomes with another key stay in the file and are ignored.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self._path = path
        self.key = key

    def append(self, outcome: Outcome) -> None:
        """Add an outcome; it survives any end of this process, and of the machine."""
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "key": self.key}
        text = json.dumps(record | {"outcome": asdict(outcome)}) + "\n"
        with self._path.open("ab+") as file:
            # A kill in the middle of a write leaves half a line, which must not spoil the next one.
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def latest(self) -> dict[str, Outcome]:
        """Return the last outcome of each check with this run's key."""
        found: dict[str, Outcome] = {}
        for text in self._path.read_text().splitlines() if self._path.is_file() else ():
            try:
                record = json.loads(text)
            except json.JSONDecodeError:  # half a line
                continue
            if record["key"] == self.key:
                outcome = as_outcome(record["outcome"])
                found[outcome.name] = outcome
        return found

    def rescue(self, name: str, description: str, folder: Path) -> None:
        """Add what a check had found when the whole run was killed; do nothing if its outcome is known."""
        begun = folder / "key.json"
        if name in self.latest() or not begun.is_file() or json.loads(begun.read_text()) != self.key:
            return
        lines = read_lines(folder / "lines.jsonl")
        self.append(Outcome(name, description, lines, 0.0, INTERRUPTED))


def read_lines(path: Path) -> tuple[Line, ...]:
    """Return the lines that a check has written, also one that was killed in the middle of a line."""
    found = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(_as_line(json.loads(text)))
        except json.JSONDecodeError:
            continue
    return tuple(found)


def as_outcome(fields: dict[str, Any]) -> Outcome:
    """Return the outcome whose fields were written as JSON."""
    return Outcome(**{**fields, "lines": tuple(map(_as_line, fields["lines"]))})


def _as_line(fields: dict[str, Any]) -> Line:
    return Line(**{**fields, "series": tuple(fields["series"])})


def to_run(names: Sequence[str], known: dict[str, Outcome]) -> list[str]:
    """Return the checks still to run: those without an outcome, then those that did not finish."""
    return [name for name in names if name not in known] + [
        name for name in names if name in known and known[name].fault
    ]
