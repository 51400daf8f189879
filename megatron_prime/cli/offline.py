"""Training on files alone: the attempt, the checkpoints and the loop that `sft` and `train-prm` share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_prime.cli.attempt import open_store, record_start
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.stages import Stage
from megatron_prime.observability import MetricsLogger, Progress
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.checkpoint.run_lock import RunLock
from megatron_prime.training.checkpoint.store import RetentionPolicy
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.health.stop import StopRequest
from megatron_prime.training.loop import EvaluationSummary, Loop, LoopContext, LoopOutput, StepRunner
from megatron_prime.training.step_profiler import StepProfiler
from megatron_prime.training.trainable import Trainable

NUM_PROGRESS_LINES = 10


class Stream(Protocol):
    """A stream of examples whose position a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as JSON can hold it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


@dataclass(frozen=True)
class OfflineParts:
    """The parts of a command that trains one model on files."""

    model: Trainable
    stream: Stream
    make_trainer: Callable[[int], StepRunner]
    """Returns the trainer, given the number of steps already done."""
    evaluate: Callable[[int], EvaluationSummary] | None
    """Measures the model on held-out data; None without."""
    shown: Mapping[str, str]
    """The metrics on the line of a step, with their labels."""
    status: Mapping[str, str]
    """The metrics of the status on a terminal, with their labels."""
    evaluated: str
    """The quantity that an evaluation measures."""


@dataclass(frozen=True)
class OfflineRun:
    """One attempt of such a command."""

    config: PrimeConfig
    stage: Stage
    topology: Topology
    progress: Progress
    lock: RunLock
    asked: StopRequest

    def train(self, build: Callable[[bool], OfflineParts]) -> OfflineParts:
        """Train from the start or from the newest sound checkpoint to the last step. Collective over all ranks.

        Args:
            build: returns the parts; its argument is False when a checkpoint is loaded right after, instead of weights.
        """
        config, stage, topology = self.config, self.stage, self.topology
        retention = RetentionPolicy(config.checkpoint.keep_last)
        store, checkpoint = open_store(config, stage.folder, retention, topology, self.lock, self.progress)
        parts = build(checkpoint is None)
        guards = Guards(config.guards, config.run_dir, topology.rank == 0, self.progress.warn)
        parts.model.watch = guards
        roles = {stage.role: parts.model}
        step_index = 0
        if checkpoint is not None:
            state = store.load(checkpoint, roles)
            parts.stream.load_state_dict(state.prompt_stream)
            guards.load_state_dict(state.guards)
            step_index = state.step_index
            self.progress.line(f"resuming after step {step_index} from {checkpoint}")
        logger = self._logger(step_index, is_first=checkpoint is None)
        context = LoopContext(
            store=store,
            roles=roles,
            prompt_stream=parts.stream,
            evaluate=parts.evaluate,
            logger=logger,
            progress=self.progress,
            guards=guards,
            fence=self.lock.fence,
            is_stopping=lambda: any_rank(self.asked(), topology),
            agree=lambda flag: any_rank(flag, topology),
            capture=StepProfiler(
                config.profile, stage.folder / "profile", topology.rank, topology.platform, self.progress.warn
            ).step,
            output=self._output(parts),
        )
        try:
            self.asked.defer()
            Loop(self._loop_config(), parts.make_trainer(step_index), context).run()
        finally:
            if logger is not None:
                logger.close()
        return parts

    def _logger(self, step_index: int, is_first: bool) -> MetricsLogger | None:
        if self.topology.rank != 0:
            return None
        config, stage = self.config, self.stage
        info = record_start(config, stage.folder, stage.command, self.lock.attempt, is_first)
        resume_step = step_index + bool(step_index)
        return MetricsLogger(stage.folder, resume_step, backends=config.logging.backends, info=info)

    def _output(self, parts: OfflineParts) -> LoopOutput:
        name = self.stage.command.replace("_", "-")
        steps_per_line = max(1, self.stage.num_steps // NUM_PROGRESS_LINES)
        return LoopOutput(name, parts.shown, parts.status, parts.evaluated, steps_per_line)

    def _loop_config(self) -> PrimeConfig:
        """Return the configuration with the schedule of the command where the loop looks for it."""
        schedule = {"num_steps": self.stage.num_steps, "eval_every": self.stage.eval_every}
        trainer = self.config.trainer.model_copy(update=schedule)
        return self.config.model_copy(update={"trainer": trainer})
