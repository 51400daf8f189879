"""One-step-off sampling: the batch of step n + 1 comes from the weights of step n, while the trainer learns from n.

    weights          version 0           version 1           version 2
    engine      batch 0 | batch 1           batch 2             batch 3
    trainer             | step 0 (batch 0)  step 1 (batch 1)    step 2 (batch 2)

The order never depends on timing (docs/adr/0049): a batch is complete before the next weights are pushed, and so the
staleness is exactly 1 from the second step on. An engine that samples in processes of its own does so beside the
training; another one samples the same batch at the same point of the schedule, before the update.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from megatron_prime.rollout.collector import Collector, NoBatch
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.held_batch import HeldBatch, Resumable
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.types import RolloutBatch

THREAD = "sampling-ahead"


def leave_if_sampling(exit_code: int) -> None:
    """End the process at once if it still samples ahead, as after an error on this rank alone.

    Python would wait for no daemon thread, and abort the process, with another exit code, if the thread came back from
    a collective while the interpreter shuts down.
    """
    if any(thread.name == THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


class SteadyEngine(Protocol):
    """An engine that keeps its weights while those of the trainer change."""

    def while_training(self) -> AbstractContextManager[None]:
        """See `Engine.while_training`."""
        ...


class OneStepOff:
    """A `BatchSource` that samples one batch ahead.

    Args:
        collector: of the batches; the source takes its place as observer of groups.
        prompts: the stream that the collector takes its prompts from.
        engine: that the collector samples from.
        num_steps: of the run; the last step samples nothing ahead.
        in_background: sample in a thread, beside the training. The collectives of collector, engine and verifier must
            then have a process group of their own.
        settings: all that a batch depends on besides weights, prompts and random numbers, as JSON values. A batch of a
            checkpoint is dropped where they have changed.
        warn: receives a warning in one line.
    """

    def __init__(
        self,
        collector: Collector,
        prompts: Resumable,
        engine: SteadyEngine,
        *,
        num_steps: int,
        in_background: bool,
        settings: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._collector = collector
        self._prompts = prompts
        self._engine = engine
        self._num_steps = num_steps
        self._in_background = in_background
        self._settings = dict(settings or {})
        self._warn = warn
        self._observe = collector.observe
        collector.observe = self._note_groups
        self._groups: Sequence[SampledGroup] = ()
        self._records: Sequence[PromptRecord] = ()
        self._held: HeldBatch | None = None
        self._failure: Exception | None = None
        """Why the batch of the next step could not be sampled ahead."""
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> HeldBatch | None:
        """See `BatchSource.held`."""
        assert self._thread is None, "a batch is still being sampled"
        return self._held

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """See `BatchSource.last_records`."""
        return self._records

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        assert self._thread is None, "a batch is still being sampled"
        return self._collector.state_dict()

    def resume(self, state: dict[str, Any], held: HeldBatch | None) -> None:
        """See `BatchSource.resume`. Without a batch, as after an outage, the first one is sampled on-policy."""
        self._collector.load_state_dict(state)
        if held is not None and held.settings != self._settings:
            changed = [name for name, value in self._settings.items() if held.settings.get(name) != value]
            self._warn(
                f"the batch that the checkpoint holds for step {held.step_index + 1} was sampled with other settings "
                f"({', '.join(changed)}): its prompts are sampled again"
            )
            held.give_back(self._prompts, self._collector)
            held = None
        self._held = held

    def collect(self, step_index: int) -> RolloutBatch | NoBatch:
        """Return the batch that was sampled ahead, or sample one now: in the first step, or where that one failed.

        Raises:
            Exception: the one that ended the sampling of this batch ahead, unless it is an engine's, which may have all
                its servers again after the push that came before this call.
        """
        held, failure = self._held, self._failure
        self._held = self._failure = None
        if isinstance(failure, EngineError):
            self._warn(
                f"the batch of step {step_index + 1} was lost while it was sampled ahead ({failure}); it is sampled "
                "again with the weights of this step"
            )
        elif failure is not None:
            raise failure
        if held is None:
            held = self._sample(step_index)
        assert held.step_index == step_index, f"step {step_index} got the batch of step {held.step_index}"
        self._records = held.records
        if self._observe is not None:
            self._observe(step_index, held.groups)
        stats = held.result.stats | {"num_lost_batches": float(failure is not None)}
        return replace(held.result, stats=stats)

    def collect_ahead(self, step_index: int) -> None:
        """See `BatchSource.collect_ahead`: sample the batch of the step after `step_index`."""
        assert self._thread is None and self._held is None, "one batch is sampled ahead at a time"
        if step_index + 1 >= self._num_steps:
            return
        if not self._in_background:
            self._sample_ahead(step_index + 1)
            return
        self._thread = threading.Thread(
            target=self._sample_ahead, args=(step_index + 1,), name=THREAD, daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """See `BatchSource.finish`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Do nothing: a batch that was sampled ahead is complete."""

    def _sample_ahead(self, step_index: int) -> None:
        try:
            with self._engine.while_training():
                self._held = self._sample(step_index)
        except Exception as error:  # noqa: BLE001 - `collect` raises it, on the thread that can handle it
            self._failure = error

    def _sample(self, step_index: int) -> HeldBatch:
        """Collect a batch; after an error, prompts and collector are where they were before."""
        before = self._prompts.state_dict(), self._collector.state_dict()
        self._groups = ()
        try:
            result = self._collector.collect(step_index)
        except Exception:
            self._prompts.load_state_dict(before[0])
            self._collector.load_state_dict(before[1])
            raise
        records = list(self._collector.last_records)
        return HeldBatch(step_index, result, records, self._groups, *before, self._settings)

    def _note_groups(self, step_index: int, groups: Sequence[SampledGroup]) -> None:
        del step_index
        self._groups = groups
