"""The source of a trainer's batches: it decides when each is sampled, and by which version of the policy."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from megatron_prime.rollout.collector import Collector, NoBatch
from megatron_prime.rollout.held_batch import HeldBatch, Resumable
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.types import RolloutBatch


class BatchSource(Protocol):
    """Gives a trainer the batch of each step. Every method is collective over all ranks.

    In each step the trainer pushes its weights, calls `collect`, then `collect_ahead`, trains, and calls `finish`.
    """

    def collect(self, step_index: int) -> RolloutBatch | NoBatch:
        """Return the batch of a step; see `Collector.collect`."""
        ...

    def collect_ahead(self, step_index: int) -> None:
        """Begin to sample what comes after a step, with the weights that the engine has. The engine is busy then."""
        ...

    def finish(self) -> None:
        """Wait until the engine is free. Errors are raised by the `collect` that they concern."""
        ...

    def close(self) -> None:
        """Abort what is sampled for later steps, at the end of the run. Not collective.

        Does nothing while the engine samples, as after an error of this rank alone.
        """
        ...

    @property
    def held(self) -> HeldBatch | None:
        """The batch of the next step, if it is sampled already; a checkpoint must hold it."""
        ...

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """All groups sampled for the batch that was returned last."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the collector's state behind all that is sampled, as JSON can hold it."""
        ...

    def resume(self, state: dict[str, Any], held: HeldBatch | None) -> None:
        """Continue from a checkpoint's state and batch; the prompt stream is at its position already."""
        ...


class OnPolicy:
    """Samples each batch with the weights that it trains: nothing is sampled ahead.

    Args:
        collector: of the batches.
        prompts: the stream that the collector takes its prompts from.
        warn: receives a warning in one line.
    """

    def __init__(
        self, collector: Collector, prompts: Resumable, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self.collector = collector
        """Samples the batches."""
        self._prompts = prompts
        self._warn = warn

    held: HeldBatch | None = None
    """See `BatchSource.held`."""

    def collect(self, step_index: int) -> RolloutBatch | NoBatch:
        """See `BatchSource.collect`."""
        return self.collector.collect(step_index)

    def collect_ahead(self, step_index: int) -> None:
        """Do nothing: the weights of the next step do not exist yet."""

    def finish(self) -> None:
        """Do nothing: nothing runs."""

    def close(self) -> None:
        """Do nothing: nothing is sampled for later steps."""

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """See `BatchSource.last_records`."""
        return self.collector.last_records

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        return self.collector.state_dict()

    def resume(self, state: dict[str, Any], held: HeldBatch | None) -> None:
        """See `BatchSource.resume`. A batch from older weights is not trained on: its prompts are sampled again."""
        self.collector.load_state_dict(state)
        if held is not None:
            self._warn(
                f"the checkpoint holds a batch for step {held.step_index + 1} that older weights sampled, and "
                "rollout.max_staleness = 0: its prompts are sampled again"
            )
            held.give_back(self._prompts, self.collector)
