"""The protocol of loggers, and what they get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # A command line is checked without numpy.
    import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """One response, for people to read."""

    prompt: str
    response: str
    outcome: float
    """NaN after a verifier error."""
    source: str = ""
    num_tokens: int = 0
    finish_reason: str = ""
    process_reward: float | None = None
    """Sum over the response; None without a PRM."""


@dataclass(frozen=True, slots=True)
class Details:
    """Values of a step that are logged now and then only."""

    distributions: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    """Declared tag of a histogram -> a bounded number of its values."""
    samples: Sequence[Sample] = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Everything that loggers get of one step."""

    step: int
    metrics: Mapping[str, float]
    """Values that are not finite included; no logger shows them."""
    details: Details = Details()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The identity of a run, as services show it."""

    run_dir: Path
    """The folder of metrics.jsonl."""
    name: str = "run"
    project: str = "megatron-prime"
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration as JSON values, without secrets."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Versions, commit, machine and command of this attempt, without secrets."""
    benchmarks: Sequence[str] = ()
    """Names of the benchmarks that the run evaluates."""
    num_steps: int = 0
    """Number of the final step of the run."""
    command: str = "train"
    """The command that writes the metrics: one of config.stages.RESUMABLE."""


class Logger(Protocol):
    """A destination of records, whose steps increase."""

    def log(self, record: StepRecord) -> None:
        """Write one step."""
        ...

    def close(self) -> None:
        """Write what is left and end; a second call does nothing."""
        ...


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as `table.key` -> value; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
