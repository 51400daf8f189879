"""The loop around the trainer: evaluation, checkpoints, logs and progress, from the first step or a resumed one."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.durable import make_private, replace_file
from megatron_prime.observability.heartbeat import begin_step
from megatron_prime.observability.loggers.protocol import flat_settings
from megatron_prime.observability.metrics import Metrics
from megatron_prime.observability.metrics_logger import MetricsLogger
from megatron_prime.observability.progress import Progress
from megatron_prime.parallel.collectives import on_first_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.rollout.held_batch import HeldBatch
from megatron_prime.rollout.prompt_history import PromptHistory, PromptRecord
from megatron_prime.rollout.verification import VerifierAwayError
from megatron_prime.training.checkpoint.saver import Saver, Store
from megatron_prime.training.checkpoint.schedule import SaveSchedule
from megatron_prime.training.checkpoint.store import RunState
from megatron_prime.training.health.guards import GuardError, Guards
from megatron_prime.training.health.stop import RunStopped
from megatron_prime.training.rollout_recorder import RolloutRecorder
from megatron_prime.training.trainable import Trainable

SHOWN = {
    "rollout/accuracy_sampled": "accuracy_sampled",
    "rollout/accuracy_batch": "accuracy_batch",
    "rollout/truncated_fraction": "truncated_fraction",
    "prm/ce": "prm_ce",
    "prm/sign_accuracy": "prm_sign_accuracy",
    "policy/ref_kl": "ref_kl",
    "policy/approx_kl": "approx_kl",
    "policy/entropy": "entropy",
    "rollout/logprob_gap": "logprob_gap",
    "time/step_s": "s",
}
"""The metrics on the line of each step, with their labels: their names, without the groups that say nothing."""

STATUS = {"rollout/accuracy_sampled": "accuracy", "prm/sign_accuracy": "PRM accuracy"}
"""The metrics of the status on a terminal, with their labels."""


class ResumableStream(Protocol):
    """A stream whose position a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as JSON can hold it."""
        ...


class StepRunner(Protocol):
    """A trainer, as far as the loop drives it."""

    step_index: int
    """Number of steps done."""

    def step(self) -> Metrics:
        """Run the next step and return its metrics. Collective over all ranks."""
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
    """A source of batches, as far as checkpoints and the prompt history read it."""

    @property
    def held(self) -> HeldBatch | None:
        """The batch of the next step, if it is sampled already."""
        ...

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """All groups sampled for the last step."""
        ...


@dataclass(frozen=True)
class LoopOutput:
    """The names of a loop on the console."""

    name: str = "prime"
    """Name of the progress bar."""
    shown: Mapping[str, str] = field(default_factory=lambda: SHOWN)
    """The metrics on the line of a step, with their labels."""
    status: Mapping[str, str] = field(default_factory=lambda: STATUS)
    """The metrics of the status on a terminal, with their labels; the first has a trend."""
    evaluated: str = "accuracy"
    """The quantity that an evaluation measures."""
    steps_per_line: int = 1
    """Print the line of each step whose number this divides, and of the last one."""


@dataclass(frozen=True)
class LoopContext:
    """The collaborators of a loop besides its trainer."""

    store: Store
    roles: Mapping[str, Trainable]
    """The trained roles, which a checkpoint holds."""
    prompt_stream: ResumableStream
    evaluate: Callable[[int], EvaluationSummary] | None
    """Measures held-out accuracy after the given number of steps; None without evaluation data."""
    logger: MetricsLogger | None
    """None on every rank but rank 0."""
    progress: Progress
    guards: Guards
    fence: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around writes to the logs; raises when another attempt of the run has taken over."""
    batches: SamplingRecord | None = None
    """Its state and its next batch go into checkpoints, its groups into the prompt history."""
    prompt_history: PromptHistory | None = None
    """None on every rank but rank 0."""
    recorder: RolloutRecorder | None = None
    """Writes the rollout log; None on every rank but rank 0."""
    is_stopping: Callable[[], bool] = lambda: False
    """Returns whether any rank was asked to stop; collective, called before the first step and after each."""
    agree: Callable[[bool], bool] = lambda flag: flag
    """Returns whether its argument is true on any rank; collective."""
    capture: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
    """Entered around each step, whose number it gets, for a timeline."""
    output: LoopOutput = LoopOutput()
    probe: Callable[[], Mapping[str, float]] | None = None
    """Measures the PRM on labelled solutions; collective. None without a probe set."""
    owed_metrics: Mapping[str, float] | None = None
    """The metrics of the last step done if an outage has prevented its evaluation, which is then done first."""


class Loop:
    """Runs a trainer to its last step.

    Args:
        config: the run's configuration.
        trainer: at step 0, or at the step of a checkpoint.
        context: see LoopContext.
    """

    def __init__(self, config: PrimeConfig, trainer: StepRunner, context: LoopContext) -> None:
        self._config = config
        self._trainer = trainer
        self._context = context
        self._saver = Saver(
            context.store, config.checkpoint.on_write_error, context.progress, trainer.step_index
        )
        self._schedule = SaveSchedule(config.checkpoint.save_every, context.agree)

    def run(self) -> None:
        """Train until num_steps, with evaluations and checkpoints on the way. Collective over all ranks.

        Metrics of a step are logged under the number of steps done, the first evaluation under 0.

        Raises:
            RunStopped: the run was asked to stop, or its reward server is away, and it has written a checkpoint.
        """
        num_steps = self._config.trainer.num_steps
        if self._trainer.step_index == 0:
            self._measure_first()
        elif self._context.evaluate is not None and self._context.owed_metrics is not None:
            metrics = Metrics(dict(self._context.owed_metrics))
            self._evaluate_first(metrics, f"after step {self._trainer.step_index}")
            self._saver.note_evaluation(metrics.get("eval/accuracy"))
        try:
            output = self._context.output
            with self._context.progress.run(
                output.name, num_steps, self._trainer.step_index, output.status
            ) as step_done:
                if self._trainer.step_index < num_steps and self._context.is_stopping():
                    self._stop(f"before step {self._trainer.step_index + 1}")
                while self._trainer.step_index < num_steps:
                    with self._context.capture(self._trainer.step_index + 1):
                        metrics = self._step()
                    step_done(metrics)
        except (FloatingPointError, GuardError):
            # Every rank raises these alike, so a collective is safe; a save in progress holds an earlier, good step.
            self._saver.finish()
            raise

    def _measure_first(self) -> None:
        """Probe the PRM and evaluate the policy before the first step."""
        metrics = Metrics()
        self._probe(metrics, is_due=True)
        if self._context.evaluate is not None:
            self._evaluate_first(metrics, "before the first step")
        elif metrics:
            self._log(metrics)

    def _evaluate_first(self, metrics: Metrics, where: str) -> None:
        """Evaluate before this attempt's first step, and log the result with the other metrics of that moment."""
        try:
            self._evaluate(metrics)
        except VerifierAwayError as error:
            self._stop(where, str(error))
        self._log(metrics)

    def _step(self) -> Metrics:
        begin_step(self._trainer.step_index + 1)
        self._context.guards.begin_step(self._trainer.step_index + 1)
        position = self._context.prompt_stream.state_dict()
        try:
            metrics = self._trainer.step()
        except VerifierAwayError as error:
            self._stop_within_step(error, position)
        done, num_steps = self._trainer.step_index, self._config.trainer.num_steps
        is_last = done == num_steps
        # Before the guards, whose alarms look at its metrics.
        self._probe(metrics, is_last or _is_due(done, self._config.prm.probe_every))
        metrics.add("guards", self._context.guards.end_step(metrics))
        outage: VerifierAwayError | None = None
        if self._context.evaluate is not None and (is_last or _is_due(done, self._config.trainer.eval_every)):
            try:
                self._evaluate(metrics)
            except VerifierAwayError as error:
                outage = error
        self._log_prompts(metrics)
        self._log_rollouts(metrics)
        if is_last or _is_due(done, self._context.output.steps_per_line):
            self._context.progress.step(done, num_steps, metrics, self._context.output.shown)
        self._log(metrics)
        # Save after the log: a resumed run drops records beyond its checkpoint, but cannot restore missing ones.
        self._saver.poll()
        self._context.guards.check_endings(metrics)
        self._context.guards.check_process_rewards(metrics)
        is_stopping = not is_last and self._context.is_stopping()
        is_due = self._schedule.is_due(done, self._saver.last_save_s)
        if is_last or is_stopping or is_due or outage is not None:
            must_succeed = is_last or is_stopping or outage is not None
            self._save(metrics, must_succeed, owes_evaluation=outage is not None)
        if outage is not None:
            self._stop(f"after step {done}", str(outage))
        if is_stopping:
            self._stop(f"after step {done}")
        return metrics

    def _stop_within_step(self, error: VerifierAwayError, position: dict[str, Any]) -> NoReturn:
        """Stop at the begin of a step that got no rewards: no weight has changed, and its prompts are taken again."""
        done = self._trainer.step_index
        self._saver.finish()
        if done > self._saver.saved_step:
            self._save(Metrics(), must_succeed=True, position=position)
        self._stop(f"after step {done}", str(error))

    def _stop(self, where: str, reason: str = "as asked") -> NoReturn:
        # A stop before the first step of an attempt leaves nothing to save: the next one starts where this one did.
        how = "" if self._config.checkpoint.resume == "auto" else " with checkpoint.resume=auto"
        saved = self._saver.saved_step
        begin = f"after step {saved}" if saved else "from the first step"
        raise RunStopped(
            f"stopped {where} of {self._config.trainer.num_steps}, {reason}; the same command{how} resumes {begin}"
        )

    def _save(
        self,
        metrics: Metrics,
        must_succeed: bool,
        position: dict[str, Any] | None = None,
        owes_evaluation: bool = False,
    ) -> None:
        context = self._context
        if context.recorder is not None:  # A resumed run keeps the files up to its checkpoint.
            self._write_rollouts(context.recorder.finish)
        state = RunState(
            self._trainer.step_index,
            context.prompt_stream.state_dict() if position is None else position,
            self._config.seed,
            context.guards.state_dict(),
            metrics.get("eval/accuracy"),
            {} if context.batches is None else context.batches.state_dict(),
            dict(metrics) if owes_evaluation else None,
            None if context.batches is None else context.batches.held,
        )
        self._saver.save(context.roles, state, must_succeed)

    def _log_prompts(self, metrics: Metrics) -> None:
        history, batches = self._context.prompt_history, self._context.batches
        if history is not None and batches is not None:
            self._write(lambda: history.log(self._trainer.step_index, batches.last_records))
            metrics.add("prompts", history.metrics())

    def _log_rollouts(self, metrics: Metrics) -> None:
        recorder = self._context.recorder
        with metrics.timed("rollout_log"):
            if recorder is not None:
                self._write_rollouts(recorder.write)

    def _write_rollouts(self, write: Callable[[], None]) -> None:
        # The thread of the recorder enters the fence itself, and must not find it taken by who waits for it.
        self._write(write, "the rollout log lacks this step", fence=nullcontext)

    def _evaluate(self, metrics: Metrics) -> None:
        assert self._context.evaluate is not None
        with metrics.timed("evaluation"):
            result = self._context.evaluate(self._trainer.step_index)
        metrics.add("eval", result.metrics())
        self._context.progress.line(
            f"held-out {self._context.output.evaluated} after {self._trainer.step_index} steps: {result.summary()}"
        )

    def _probe(self, metrics: Metrics, is_due: bool) -> None:
        if self._context.probe is None or not is_due:
            return
        with metrics.timed("probe"):
            found = self._context.probe()
        metrics.add("probe", found)
        values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        self._context.progress.line(f"PRM probe after {self._trainer.step_index} steps: {values}")

    def _log(self, metrics: Metrics) -> None:
        logger = self._context.logger
        if logger is not None:
            self._write(lambda: logger.log(self._trainer.step_index, metrics))

    def _write(
        self,
        write: Callable[[], None],
        consequence: str = "the record will be written later",
        fence: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        """Write to a log, and handle what it cannot write as configured; the consequence is a part of the warning."""
        try:
            with (fence or self._context.fence)():
                write()
        except OSError as error:
            if self._config.checkpoint.on_write_error == "stop":
                raise
            self._context.progress.warn(
                f"{error}. Training continues (checkpoint.on_write_error); {consequence}"
            )


def save_resolved_config(config: PrimeConfig, folder: Path) -> None:
    """Write the resolved configuration, with defaults and overrides, to config.json in a folder of the run."""
    make_private(folder)
    replace_file(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")


def with_date(config: PrimeConfig, folder: Path, topology: Topology) -> PrimeConfig:
    """Return the configuration with the date that chat templates write: the day of the run's first start. Collective.

    Args:
        config: the run's configuration.
        folder: the folder of its config.json.
        topology: of the job.
    """
    if config.data.date is not None:
        return config
    date = on_first_rank(lambda: first_date(folder), topology)
    return config.model_copy(update={"data": config.data.model_copy(update={"date": date})})


def first_date(folder: Path) -> datetime.date:
    """Return the date that config.json holds since the run's first start, or today's."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["data"]["date"]
        return datetime.date.fromisoformat(stored)
    except (OSError, ValueError, KeyError, TypeError):
        return datetime.date.today()


def changed_settings(config: PrimeConfig, folder: Path) -> list[str]:
    """Return the differences to a folder's config.json as `section.key: old -> new`; none without that file.

    A resumed run uses the new settings. That may be intended, but it is then not the run that was started.
    """
    path = folder / "config.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    old, new = flat_settings(before), flat_settings(config.model_dump(mode="json"))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
