"""Finds the metrics and the logged steps of runs, and names the runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prime.observability.jsonl import Record, read_history
from megatron_prime.observability.rollout_log import ROLLOUTS, logged_steps

METRICS_FILE = "metrics.jsonl"
_SHOWN = 5


@dataclass(frozen=True)
class Run:
    """The records and the logged steps of one run."""

    folder: Path
    name: str
    """Shortest end of the folder's path that no other run of this view has."""
    records: list[Record]
    """One record per step, in the order of the steps."""
    step_files: dict[int, Path]
    """Logged step -> its file of the rollout log, in the order of the steps."""


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of these folders.

    Raises:
        ValueError: A folder is no run, or a line of its metrics is damaged.
    """
    unique = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = short_names(unique)
    return [_open(folder, names[index]) for index, folder in enumerate(unique)]


def _open(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the run_dir of a run")
    step_files = logged_steps(folder / ROLLOUTS)
    if not (folder / METRICS_FILE).exists() and not step_files:
        raise ValueError(f"{folder} has no {METRICS_FILE} and no {ROLLOUTS}/: {_advice(folder)}")
    return Run(folder, name, in_order(read_history(folder / METRICS_FILE)), step_files)


def _advice(folder: Path) -> str:
    found = sorted({path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{METRICS_FILE}")})
    if not found:
        return "name the run_dir of a run that has finished at least one step"
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return f"did you mean {' or '.join(str(path) for path in found[:_SHOWN])}{more}?"


def in_order(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each step, in the order of the steps.

    A run that was killed and has not yet resumed may have records that its next attempt will replace.
    """
    newest = {record["step"]: record for record in records}
    return [newest[step] for step in sorted(newest, key=lambda step: -1 if step is None else step)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart: `prime` alone, or `a/prime` beside `b/prime`."""
    return ["/".join(_short_end(folder, folders)) for folder in folders]


def _short_end(folder: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    for length in range(1, len(folder.parts)):
        end = folder.parts[-length:]
        if sum(other.parts[-length:] == end for other in folders) == 1:
            return end
    return folder.parts


def finite(value: float | None) -> float | None:
    """Return the value, or None if it is missing, not a number, or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
