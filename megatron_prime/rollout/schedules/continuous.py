"""Continuous sampling: servers never wait for the trainer, and no group is more than `max_staleness` steps old.

    weights        version 0 |   version 1   |   version 2   |
    engine      g0 g1 g2 g3 g4 g5 g6 g7 g8 g9 ...             groups in the order of their prompts
    trainer        | step 0  |    step 1     |    step 2     |

One stream of groups lasts for the whole run. A batch is the next prefix of the prompts (`prefix`), and what is behind
it stays in work. A push of new weights lets the responses in work end first, or continues them with the new weights, as
the engine is configured. Which version samples a group depends on timing, so that a run is not repeatable; its age is
bounded all the same, by when a group may begin (docs/adr/0052).
"""

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from megatron_prime.rollout.collector import Collector, NoBatch
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.group_filter import FilterDecision, Group
from megatron_prime.rollout.held_batch import HeldBatch
from megatron_prime.rollout.prefix import Prefix
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.rollout.schedules.one_step_off import THREAD
from megatron_prime.rollout.verified_groups import POLL_S, VerifiedGroups
from megatron_prime.types import RolloutBatch


class Window:
    """The batches that groups which have begun will fill at the latest, if the filter keeps all that are undecided.

    A step takes groups until num_needed of them are kept, or max_prompts at most. A group that turns out to be dropped
    lets the step take more, and so never delays a group behind it: the number here is an upper bound.
    """

    def __init__(self, num_needed: int, max_prompts: int) -> None:
        self._num_needed = num_needed
        self._max_prompts = max_prompts
        self.num_batches = 0
        """Batches that are full: the next group belongs to the one after them, or to an earlier one."""
        self._num_kept = 0
        self._num_groups = 0

    def add(self, is_dropped: bool = False) -> None:
        """Add a group, which is kept or undecided unless it is known to be dropped."""
        self._num_groups += 1
        self._num_kept += not is_dropped
        if self._num_kept == self._num_needed or self._num_groups == self._max_prompts:
            self.num_batches += 1
            self._num_kept = self._num_groups = 0


class Continuous:
    """A `BatchSource` whose engine goes on sampling while the trainer trains and weights are pushed.

    Args:
        collector: makes the batches.
        max_staleness: most steps between the weights that begin a group and those that are trained on it.
        num_steps: of the run.
        warn: receives a warning in one line.
    """

    held: HeldBatch | None = None
    """See `BatchSource.held`. None, as what was sampled ahead is sampled again after a resume."""

    def __init__(
        self,
        collector: Collector,
        max_staleness: int,
        num_steps: int,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._collector = collector
        self._max_staleness = max_staleness
        self._num_steps = num_steps
        self._warn = warn
        self._stack = ExitStack()
        """Closes the stream."""
        self._training = ExitStack()
        """Ends the time in which the trainer has other weights than the engine."""
        self._groups: VerifiedGroups | None = None
        self._decided: dict[int, tuple[Group, FilterDecision]] = {}
        """Verified groups that no step has taken, by number."""
        self._first = 0
        """Number of the first group that no step has taken."""
        self._num_submitted = 0
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._is_stopping = threading.Event()

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """See `BatchSource.last_records`."""
        return self._collector.last_records

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource.state_dict`."""
        return self._collector.state_dict()

    def resume(self, state: dict[str, Any], held: HeldBatch | None) -> None:
        """See `BatchSource.resume`. A batch that one-step-off sampling has left is sampled again."""
        self._collector.load_state_dict(state)
        if held is not None:
            self._warn(
                f"the checkpoint holds a batch for step {held.step_index + 1} of rollout.max_staleness = 1: its "
                "prompts are sampled again"
            )
            held.give_back(self._collector.prompts, self._collector)

    def collect(self, step_index: int) -> RolloutBatch | NoBatch:
        """Return the next batch, and wait for it if it is not complete.

        Raises:
            Exception: the one that ended the sampling ahead, unless it is an engine's, which may have all its servers
                again after the push that came before this call.
        """
        # The weights of this step have been pushed: the trainer can give them to a server that loses them.
        self._training.close()
        failure, self._failure = self._failure, None
        if isinstance(failure, EngineError):
            self._warn(
                f"the groups that were sampled ahead of step {step_index + 1} were lost ({failure}); they are sampled "
                "again"
            )
        elif failure is not None:
            raise failure
        try:
            while (taken := self._next_batch()) is None:
                self._go_on(step_index, self._max_staleness)
        except BaseException:
            self._give_up()
            raise
        for number in range(self._first, self._first + len(taken)):
            del self._decided[number]
        self._first += len(taken)
        self._collector.prompts.take(len(taken))
        if step_index + 1 >= self._num_steps:
            self._forget()
            self._stack.close()
        stats = {"num_lost_batches": float(failure is not None)}
        return self._collector.batch_of(step_index, taken, {}, stats)

    def collect_ahead(self, step_index: int) -> None:
        """See `BatchSource.collect_ahead`: go on in a thread until `finish`."""
        assert self._thread is None
        if step_index + 1 >= self._num_steps:
            return
        self._training.enter_context(self._collector.while_training())
        self._is_stopping.clear()
        self._thread = threading.Thread(
            target=self._go_on_ahead, args=(step_index,), name=THREAD, daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """See `BatchSource.finish`. The servers go on with what has begun; nothing new begins until the next call."""
        if self._thread is not None:
            self._is_stopping.set()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """See `BatchSource.close`. The prompts of what is aborted are in the queue still."""
        if self._thread is None:
            try:
                raise EngineError("the run has ended")
            except EngineError:
                self._give_up()

    def _next_batch(self) -> list[tuple[Group, FilterDecision]] | None:
        """Return the groups of the next step in order; None if they are not all decided."""
        prefix = self._collector.prefix()
        prefix.num_submitted = self._num_submitted - self._first
        for number in sorted(self._decided):
            if not prefix.is_complete:
                prefix.decide(number - self._first, *self._decided[number])
        return prefix.groups() if prefix.is_complete else None

    def _go_on_ahead(self, step_index: int) -> None:
        try:
            # All ranks end after the same look, as each look is a meeting.
            while not any(self._collector.ranks.gather_all([self._is_stopping.is_set()])):
                self._go_on(step_index + 1, self._max_staleness - 1)
        except Exception as error:  # noqa: BLE001 - `collect` raises it, on the thread that can handle it
            self._failure = error
            self._give_up()

    def _go_on(self, next_step: int, limit: int) -> None:
        """Begin as many groups as may be used in time, and wait a moment for verified ones.

        Args:
            next_step: the step that takes the next batch.
            limit: most batches between the next one and that of a group that begins now.
        """
        if self._groups is None:
            self._groups = self._stack.enter_context(self._collector.open(next_step))
        prompts = self._num_to_begin(min(limit, self._num_steps - 1 - next_step))
        if prompts > 0:
            self._groups.submit(self._collector.prompts.ahead(self._num_submitted - self._first, prompts))
            self._num_submitted += prompts
        for number, group in self._groups.finished(2 * POLL_S):
            self._decided[number] = group, self._collector.decide(group)
        if not self._groups.num_open:
            self._is_stopping.wait(POLL_S)

    def _num_to_begin(self, limit: int) -> int:
        assert self._groups is not None
        prefix: Prefix = self._collector.prefix()
        window = Window(prefix.num_needed, prefix.max_prompts)
        for number in range(self._first, self._num_submitted):
            decided = self._decided.get(number)
            window.add(is_dropped=decided is not None and decided[1] is not FilterDecision.KEPT)
        count, room = 0, self._collector.size.max_groups_in_flight - self._groups.num_in_flight
        while window.num_batches <= limit and count < room:
            window.add()
            count += 1
        return count

    def _give_up(self) -> None:
        """End the stream after an error, which the other ranks may not have; the prompts are in the queue still."""
        self._forget()
        self._stack.__exit__(*sys.exc_info())

    def _forget(self) -> None:
        self._groups = None
        self._decided.clear()
        self._first = self._num_submitted = 0
