"""Logs a run to Weights & Biases (https://docs.wandb.ai), online, or offline into run_dir/wandb for `wandb sync`."""

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import wandb

from megatron_prime.observability.jsonl import Record
from megatron_prime.observability.loggers.markdown import shortened, visible
from megatron_prime.observability.loggers.position import Position, finite_values
from megatron_prime.observability.loggers.protocol import RunInfo, StepRecord

NUM_BUCKETS = 64
"""Buckets of a histogram, as in those that wandb makes itself."""
START_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 45.0
_LOG = logging.getLogger(__name__)


class WandbLogger:
    """A run of Weights & Biases with the steps of metrics.jsonl.

    The variables of wandb apply: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY and others. Without a key it
    logs offline, because it would otherwise ask for one.

    Args:
        info: what to show of the run.
        resume_step: first step that this attempt logs.
        history: returns the records of metrics.jsonl before resume_step.
    """

    def __init__(self, info: RunInfo, resume_step: int, history: Callable[[], Sequence[Record]]) -> None:
        self._position = Position(info.run_dir, "wandb")
        is_continued = self._position.continues(resume_step)
        if self._position.run_id and not is_continued:
            _put_away(info, self._position.run_id)
        if not is_continued:
            self._position.begin(uuid.uuid4().hex[:8], -1)
        self._run = wandb.init(
            id=self._position.run_id,
            resume="allow",
            name=info.name,
            group=info.name,
            project=os.environ.get("WANDB_PROJECT", info.project),
            dir=str(info.run_dir),
            mode=_mode(),
            config={**info.config, "provenance": dict(info.provenance)},
            allow_val_change=True,
            settings=_settings(),
        )
        if not is_continued:
            for earlier in history():
                self._send(int(earlier["step"] or 0), finite_values(earlier))

    def log(self, record: StepRecord) -> None:
        """Send one step."""
        values: dict[str, object] = dict(finite_values(record.metrics))
        for name, numbers in record.details.distributions.items():
            finite = np.asarray(numbers, dtype=np.float64)
            finite = finite[np.isfinite(finite)]
            if finite.size:
                values[name] = wandb.Histogram(np_histogram=np.histogram(finite, bins=NUM_BUCKETS))
        if record.details.samples:
            values["rollout/samples"] = _table(record)
        self._send(record.step, values)

    def close(self) -> None:
        """End the run, and wait until everything is on disk or uploaded; a second call does nothing."""
        self._run.finish()

    def _send(self, step: int, values: dict[str, object] | dict[str, float]) -> None:
        self._position.sending(step)
        self._run.log(values, step=step)


def _mode() -> Literal["offline"] | None:
    """Return the mode for wandb.init; None leaves it to the environment."""
    if os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False):
        return None
    _LOG.warning(
        "Weights & Biases has no API key (`wandb login`, or WANDB_API_KEY): the run is logged offline, and "
        "`wandb sync` uploads it later. WANDB_MODE=offline says so without this warning"
    )
    return "offline"


def _settings() -> wandb.Settings:
    return wandb.Settings(
        silent=True,
        console="off",  # wandb would copy the console, which other handlers of this process write to.
        save_code=False,
        disable_git=True,  # The provenance has the commit, and its difference without secrets.
        init_timeout=START_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
    )


def _table(record: StepRecord) -> wandb.Table:
    columns: list[Any] = [
        "step",
        "outcome",
        "tokens",
        "finish_reason",
        "process_reward",
        "source",
        "prompt",
        "response",
    ]
    rows: list[Any] = [
        [
            record.step,
            None if np.isnan(sample.outcome) else sample.outcome,
            sample.num_tokens,
            sample.finish_reason,
            sample.process_reward,
            sample.source,
            visible(shortened(sample.prompt)),
            visible(shortened(sample.response)),
        ]
        for sample in record.details.samples
    ]
    return wandb.Table(columns=columns, data=rows)


def _put_away(info: RunInfo, run_id: str) -> None:
    """Rename the offline folders of a replaced run, so that `wandb sync` does not upload its steps beside the new."""
    for folder in (info.run_dir / "wandb").glob(f"offline-run-*-{run_id}"):
        folder.rename(folder.with_name(f"replaced-{folder.name}"))
