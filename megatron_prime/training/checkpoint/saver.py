"""Saving as the loop does it: completed checkpoints are reported, and a failed write need not end the run."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from megatron_prime.observability.heartbeat import phase
from megatron_prime.observability.progress import Progress
from megatron_prime.training.checkpoint.store import RunState
from megatron_prime.training.trainable import Trainable


class Store(Protocol):
    """The part of a CheckpointStore that saves; every method is collective and returns a checkpoint it completed."""

    def save(self, roles: Mapping[str, Trainable], state: RunState) -> Path | None:
        """Write a checkpoint, or begin to write it in the background."""
        ...

    def poll(self) -> Path | None:
        """Complete a save in the background if every rank has written its part."""
        ...

    def finish(self) -> Path | None:
        """Wait for a save in the background and complete it."""
        ...

    def note_evaluation(self, step_index: int, accuracy: float | None) -> None:
        """Note in a checkpoint that the evaluation it owes has been done."""
        ...


class Saver:
    """Drives a store, and reports what becomes of each save.

    Args:
        store: where checkpoints go.
        on_write_error: checkpoint.on_write_error; "continue" warns of a failed write and lets training go on.
        progress: receives a line per completed checkpoint, and the warnings.
        saved_step: the step of the checkpoint that the run began with; 0 without one.
    """

    def __init__(
        self,
        store: Store,
        on_write_error: Literal["stop", "continue"],
        progress: Progress,
        saved_step: int = 0,
    ) -> None:
        self._store = store
        self.saved_step = saved_step
        """The step of the newest complete checkpoint, at which the next attempt of the run will begin."""
        self._begun_step = saved_step
        """The step of the last save that was begun; in the background it may still fail."""
        self._may_fail = on_write_error != "stop"
        self._progress = progress
        self._waited_s = 0.0
        """Time that training has waited for the save in progress."""
        self._begun_at = 0.0
        self.last_save_s = 0.0
        """Seconds from the begin of the last save to its end, whether it succeeded or failed."""

    def poll(self) -> None:
        """Complete a save in the background if it is written. Collective over all ranks, as are the others."""
        self._attempt(self._store.poll, self._may_fail)

    def save(self, roles: Mapping[str, Trainable], state: RunState, must_succeed: bool) -> None:
        """Write a checkpoint; with `must_succeed`, return when it is complete and raise OSError when it cannot be.

        The save before it is completed first, by itself: if that one fails, this one can still succeed.
        """
        self.finish()
        may_fail = self._may_fail and not must_succeed
        self._begun_at, self._begun_step = time.monotonic(), state.step_index
        self._attempt(lambda: self._store.save(roles, state), may_fail)
        if must_succeed:
            self._attempt(self._store.finish, may_fail)

    def finish(self) -> None:
        """Wait for a save in the background and complete it."""
        self._attempt(self._store.finish, self._may_fail)

    def note_evaluation(self, accuracy: float | None) -> None:
        """Note in the newest checkpoint that the evaluation it owes has been done."""
        self._attempt(lambda: self._store.note_evaluation(self.saved_step, accuracy), self._may_fail)

    def _attempt(self, action: Callable[[], Path | None], may_fail: bool) -> None:
        started = time.monotonic()
        try:
            with phase("checkpoint"):
                path = action()
        except OSError as error:
            if not may_fail:
                raise
            self.last_save_s = time.monotonic() - self._begun_at
            self._progress.warn(f"{error}. Training continues (checkpoint.on_write_error)")
            return
        self._waited_s += time.monotonic() - started
        if path is not None:
            self.saved_step = self._begun_step
            self.last_save_s = time.monotonic() - self._begun_at
            self._progress.line(f"saved {path}; training waited {self._waited_s:.1f} s")
            self._waited_s = 0.0
