"""A record of every prompt sampled in a run: run_dir/prompts.jsonl, one line per step.

    {"step": 12, "prompts": [[prompt index, mean accuracy or null, filter decision], ...]}

On resume, records from the resume step on are dropped, as in metrics.jsonl, so the file equals that of an uninterrupted
run.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import AppendedFile, make_private, replace_file
from megatron_prime.observability.jsonl import read_history

PromptRecord = tuple[int, float, str]
"""Prompt index, mean outcome of its group (NaN after a verifier error), and the filter's decision on the group."""


@dataclass(slots=True)
class PromptStats:
    """Statistics of one prompt over a run."""

    num_sampled: int = 0
    """Number of groups sampled."""
    num_verified: int = 0
    """Number of groups without a verifier error."""
    sum_accuracy: float = 0.0
    """Sum of the mean accuracies of the verified groups."""
    last_step: int = 0
    """Step that sampled the prompt last."""

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over the verified groups; NaN if there are none."""
        return self.sum_accuracy / self.num_verified if self.num_verified else math.nan

    def add(self, step: int, accuracy: float) -> None:
        """Add one group with its mean accuracy, or NaN after a verifier error."""
        self.num_sampled += 1
        self.last_step = step
        if not math.isnan(accuracy):
            self.num_verified += 1
            self.sum_accuracy += accuracy


class PromptHistory:
    """Writes the record of sampled prompts; each line is on disk when `log` returns. Only rank 0 opens one."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Open `path` for a run whose first logged step is `resume_step` or later.

        Raises:
            ValueError: a line other than an incomplete last one is damaged.
        """
        kept = [record for record in _read(path) if record["step"] < resume_step]
        make_private(path.parent)
        # Rewriting the file also removes an incomplete last line, which a killed run may have left.
        replace_file(path, "".join(_encode(record) for record in kept))
        self._file = AppendedFile(path)
        self.prompts = stats_of(kept)
        """Prompt index -> statistics of the prompt."""

    def log(self, step: int, records: Sequence[PromptRecord]) -> None:
        """Append the groups sampled for a step, kept or dropped. After an OSError, the next call writes them too."""
        # JSON has no NaN.
        prompts = [[index, None if math.isnan(mean) else mean, decision] for index, mean, decision in records]
        _add(self.prompts, step, prompts)
        self._file.append(_encode({"step": step, "prompts": prompts}).encode())

    def metrics(self) -> dict[str, float]:
        """Return metrics over all prompts sampled so far.

        The keys are num_seen, mean_times_sampled, and always_right_fraction and always_wrong_fraction, which are
        fractions of the prompts that were verified at least once.
        """
        seen = self.prompts.values()
        means = [stats.mean_accuracy for stats in seen if stats.num_verified]
        return {
            "num_seen": float(len(seen)),
            "mean_times_sampled": sum(stats.num_sampled for stats in seen) / len(seen) if seen else 0.0,
            "always_right_fraction": sum(mean == 1 for mean in means) / len(means) if means else 0.0,
            "always_wrong_fraction": sum(mean == 0 for mean in means) / len(means) if means else 0.0,
        }

    def close(self) -> None:
        """Close the file. Closing it twice is allowed."""
        self._file.close()


def read_prompt_stats(path: Path) -> dict[int, PromptStats]:
    """Return the statistics of each prompt, by index, of a finished or running run.

    Raises:
        ValueError: the file is damaged.
    """
    return stats_of(_read(path))


def stats_of(records: Sequence[dict[str, Any]]) -> dict[int, PromptStats]:
    """Return the statistics of each prompt, by index, from the records of a file."""
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
