"""How often each prompt was sampled, and how well: run_dir/prompts.jsonl, one record a step.

    {"step": 12, "prompts": [[prompt index, mean accuracy or null, verdict], ...]}

A resumed run leaves the file of an unbroken one: what it holds from the resume step on is dropped, as in metrics.jsonl.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.jsonl import read_history

PromptRecord = tuple[int, float, str]
"""Prompt index, mean outcome of its group (NaN after a verifier error), and what became of the group."""


@dataclass(slots=True)
class PromptStats:
    """One prompt over the run."""

    num_sampled: int = 0
    """Groups sampled."""
    num_judged: int = 0
    """Groups without a verifier error."""
    sum_accuracy: float = 0.0
    last_step: int = 0

    @property
    def mean_accuracy(self) -> float:
        """Mean over its judged groups; NaN without any."""
        return self.sum_accuracy / self.num_judged if self.num_judged else math.nan

    def add(self, step: int, accuracy: float) -> None:
        """Count one group."""
        self.num_sampled += 1
        self.last_step = step
        if not math.isnan(accuracy):
            self.num_judged += 1
            self.sum_accuracy += accuracy


class PromptHistory:
    """Appends what was sampled; each record is on disk when `log` returns. Rank 0 alone makes one."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Open `path` for a run whose first logged step will be `resume_step` or later.

        Raises:
            ValueError: a damaged line other than a torn last one.
        """
        kept = [record for record in _read(path) if record["step"] < resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "".join(_encode(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self.prompts = stats_of(kept)
        """Prompt index -> its statistics."""

    def log(self, step: int, records: Sequence[PromptRecord]) -> None:
        """Add the groups that were sampled for a step, kept or not."""
        prompts = [[index, None if math.isnan(mean) else mean, verdict] for index, mean, verdict in records]
        self._file.write(_encode({"step": step, "prompts": prompts}))
        self._file.flush()
        os.fsync(self._file.fileno())
        _add(self.prompts, step, prompts)

    def metrics(self) -> dict[str, float]:
        """Numbers over all prompts sampled so far.

        Keys: num_seen, mean_times_sampled, and of the prompts with a verdict always_right_fraction and
        always_wrong_fraction.
        """
        seen = self.prompts.values()
        means = [stats.mean_accuracy for stats in seen if stats.num_judged]
        return {
            "num_seen": float(len(seen)),
            "mean_times_sampled": sum(stats.num_sampled for stats in seen) / len(seen) if seen else 0.0,
            "always_right_fraction": sum(mean == 1 for mean in means) / len(means) if means else 0.0,
            "always_wrong_fraction": sum(mean == 0 for mean in means) / len(means) if means else 0.0,
        }

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def read_prompt_stats(path: Path) -> dict[int, PromptStats]:
    """Statistics by prompt index of a finished or running run. Raises ValueError for a damaged file."""
    return stats_of(_read(path))


def stats_of(records: Sequence[dict[str, Any]]) -> dict[int, PromptStats]:
    """Add records up."""
    prompts: dict[int, PromptStats] = {}
    for record in records:
        _add(prompts, record["step"], record["prompts"])
    return prompts


def _add(prompts: dict[int, PromptStats], step: int, groups: Sequence[Sequence[Any]]) -> None:
    for index, accuracy, _ in groups:
        prompts.setdefault(index, PromptStats()).add(step, math.nan if accuracy is None else accuracy)


def _read(path: Path) -> list[dict[str, Any]]:
    records: list[Any] = read_history(path)
    for record in records:
        if not isinstance(record.get("prompts"), list):
            raise ValueError(f"{path}: the record of step {record['step']} has no list 'prompts'")
    return records


def _encode(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
