"""Around the trainer: evaluation, checkpoints, logs and progress, from the first step or from where a run stopped."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.heartbeat import begin_step, phase
from megatron_prime.observability.metrics import Metrics
from megatron_prime.observability.metrics_logger import MetricsLogger
from megatron_prime.observability.progress import Progress
from megatron_prime.rollout.prompt_history import PromptHistory, PromptRecord
from megatron_prime.training.checkpoint.store import CheckpointStore, RunState
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.health.stop import RunStopped
from megatron_prime.training.trainable import Trainable
from megatron_prime.training.trainer import Trainer

SHOWN = {
    "rollout/accuracy_before_filter": "accuracy",
    "prm/ce": "prm_ce",
    "prm/sign_accuracy": "prm_acc",
    "policy/approx_kl": "kl",
    "policy/entropy": "entropy",
    "rollout/logprob_gap": "gap",
    "time/step_s": "s",
}
"""Metrics on the line of each step."""


class ResumableStream(Protocol):
    """The part of a prompt stream that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        ...


class EvaluationSummary(Protocol):
    """The part of an evaluation's result that the loop logs."""

    def metrics(self) -> dict[str, float]:
        """Return the values to log, by name."""
        ...

    def summary(self) -> str:
        """Return the result in one line."""
        ...


class SamplingRecord(ResumableStream, Protocol):
    """The part of a collector that outlives a step."""

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """Every group sampled for the last step."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What the loop tells, asks and keeps."""

    store: CheckpointStore
    roles: Mapping[str, Trainable]
    """What a checkpoint holds."""
    prompt_stream: ResumableStream
    evaluate: Callable[[int], EvaluationSummary] | None
    """Held-out accuracy after so many steps; None without evaluation data."""
    logger: MetricsLogger | None
    """On rank 0 alone."""
    progress: Progress
    guards: Guards
    fence: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around what the logger writes; raises when another life of the run has taken over."""
    collector: SamplingRecord | None = None
    """Whose state a checkpoint holds, and whose groups the history below gets."""
    prompt_history: PromptHistory | None = None
    """On rank 0 alone."""
    is_stopping: Callable[[], bool] = lambda: False
    """Whether any rank was asked to stop; collective, asked after every step."""


class Loop:
    """Runs a trainer to its last step.

    Args:
        config: the run's configuration.
        trainer: at step 0, or where a checkpoint left it.
        surroundings: see there.
    """

    def __init__(self, config: PrimeConfig, trainer: Trainer, surroundings: Surroundings) -> None:
        self._config = config
        self._trainer = trainer
        self._around = surroundings
        self._waited_s = 0.0
        """For the save on its way."""

    def run(self) -> None:
        """Train until num_steps, saving and evaluating on the way. Collective over all ranks.

        The engine must hold the policy's weights. Metrics of a step are logged under the number of steps done, the
        first evaluation under 0. Raises RunStopped after a checkpoint when the run is asked to stop.
        """
        num_steps = self._config.trainer.num_steps
        if self._trainer.step_index == 0:
            metrics = Metrics()
            if self._around.evaluate is not None:
                self._evaluate(metrics)
                self._log(metrics)
        try:
            with self._around.progress.phase("prime", num_steps) as advance:
                advance(self._trainer.step_index)
                while self._trainer.step_index < num_steps:
                    self._step()
                    advance(1)
        except FloatingPointError:
            # It meets all ranks alike, and what was to be saved before it is good.
            self._complete_save(self._around.store.finish, is_last=False)
            raise

    def _step(self) -> None:
        begin_step(self._trainer.step_index + 1)
        self._around.guards.begin_step(self._trainer.step_index + 1)
        metrics = self._trainer.step()
        metrics.add("guards", self._around.guards.end_step(metrics))
        done, num_steps = self._trainer.step_index, self._config.trainer.num_steps
        is_last = done == num_steps
        if self._around.evaluate is not None and (is_last or _is_due(done, self._config.trainer.eval_every)):
            self._evaluate(metrics)
        self._log_prompts(metrics)
        self._around.progress.step(done, num_steps, metrics, SHOWN)
        self._log(metrics)
        self._complete_save(self._around.store.poll, is_last)
        # After the log: a resumed run drops what was logged beyond its checkpoint, but cannot invent what is missing.
        is_stopping = not is_last and self._around.is_stopping()
        if is_last or is_stopping or _is_due(done, self._config.checkpoint.save_every):
            state = RunState(
                done,
                self._around.prompt_stream.state_dict(),
                self._config.seed,
                self._around.guards.state_dict(),
                metrics.get("eval/accuracy"),
                {} if self._around.collector is None else self._around.collector.state_dict(),
            )
            self._complete_save(self._around.store.finish, is_last=False)  # the one before, told by itself
            must_save = is_last or is_stopping
            self._complete_save(lambda: self._around.store.save(self._around.roles, state), must_save)
        if is_last or is_stopping:
            self._complete_save(self._around.store.finish, is_last=True)
        if is_stopping:
            raise RunStopped(
                f"stopped after step {done} of {num_steps}, as asked; the same command goes on from there"
            )

    def _log_prompts(self, metrics: Metrics) -> None:
        history, collector = self._around.prompt_history, self._around.collector
        if history is not None and collector is not None:
            with self._around.fence():
                history.log(self._trainer.step_index, collector.last_records)
            metrics.add("prompts", history.metrics())

    def _complete_save(self, action: Callable[[], Path | None], is_last: bool) -> None:
        """Do a part of a save that may complete a checkpoint; tell of it, or of the fault when it need not stop us."""
        started = time.monotonic()
        try:
            with phase("checkpoint"):
                path = action()
        except OSError as error:
            if is_last or self._config.checkpoint.on_write_error == "stop":
                raise
            self._around.progress.line(f"WARNING: {error}. Training goes on (checkpoint.on_write_error)")
        else:
            self._waited_s += time.monotonic() - started
            if path is not None:
                self._around.progress.line(f"saved {path}; training waited {self._waited_s:.1f} s")
                self._waited_s = 0.0

    def _evaluate(self, metrics: Metrics) -> None:
        assert self._around.evaluate is not None
        with metrics.timed("evaluation"):
            result = self._around.evaluate(self._trainer.step_index)
        metrics.add("eval", result.metrics())
        self._around.progress.line(
            f"held-out accuracy after {self._trainer.step_index} steps: {result.summary()}"
        )

    def _log(self, metrics: Metrics) -> None:
        if self._around.logger is not None:
            with self._around.fence():
                self._around.logger.log(self._trainer.step_index, metrics)


def save_resolved_config(config: PrimeConfig) -> None:
    """Write what the run really uses, defaults and overrides included, to run_dir/config.json."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    replace_file(config.run_dir / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")


def changed_settings(config: PrimeConfig) -> list[str]:
    """What differs from the settings in run_dir/config.json, as `section.key: old -> new`; none without that file.

    A resumed run goes on with the new settings, which may be meant; it is then no longer the run that was begun.
    """
    path = config.run_dir / "config.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    old, new = _flat(before), _flat(config.model_dump(mode="json"))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
