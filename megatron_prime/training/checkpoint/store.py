"""Checkpoints of a whole run, written by Megatron's dist_checkpointing: each is complete or absent, even after a kill.

run_dir/checkpoints/step_00000010/
    policy/  prm/       weights, optimizer moments and LR schedule of each role, sharded
    rng.pt              random states of every rank
    held_batch.*        the batch of the next step, if it is sampled already (rollout/held_batch.py)
    run.json            steps done, data position, guards' counters, held-out accuracy
    evaluated.json      the accuracy, if an outage has delayed its evaluation; not in the manifest
    manifest.json       size and checksum of every file; written last before the rename
run_dir/checkpoints/.step_00000020.attempt3.partial/   a save in progress, or one that a kill interrupted
run_dir/checkpoints/damaged_step_00000030/             a checkpoint that was found damaged and set aside
"""

import io
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException  # noqa: TID251 - a name, no communication

from megatron_prime import __version__
from megatron_prime.models.builder import BuiltModel
from megatron_prime.models.chunk_state import chunk_states, fill_chunks
from megatron_prime.models.stored_pickles import UnknownContentError, load_plain, refuse_code
from megatron_prime.parallel.collectives import all_gather_lists, any_rank, on_first_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.rollout.held_batch import HeldBatch, read_held, write_held
from megatron_prime.training.checkpoint.folder import (
    all_named,
    clear_leftovers,
    complete,
    make_partial,
    name_of,
    note_evaluation,
    owed_metrics,
    partial_of,
    prune,
    publish,
    read_run,
    release_space,
    require_roles,
    reserve_space,
    set_aside,
)
from megatron_prime.training.checkpoint.manifest import faults, read_manifest, share, unlisted, write_manifest
from megatron_prime.training.checkpoint.role_writer import OPTIMIZER_FORMAT, RoleWriter
from megatron_prime.training.trainable import Trainable

POLL_S = 0.02
"""Seconds between two checks of a write that is waited for."""
FAULTS_SHOWN = 5
NEVER_COMPLETE = "it has neither run.json nor manifest.json, like half a copy"

Item = TypeVar("Item")


@dataclass(frozen=True)
class RunState:
    """The state besides the models that an exact resume needs."""

    step_index: int
    """Number of steps done."""
    prompt_stream: dict[str, Any]
    """The prompt stream's state_dict."""
    seed: int
    guards: dict[str, Any] = field(default_factory=dict)
    """The guards' state_dict."""
    accuracy: float | None = None
    """Held-out accuracy after these steps; None where it was not measured."""
    collector: dict[str, Any] = field(default_factory=dict)
    """The collector's state_dict."""
    owed_metrics: dict[str, float] | None = None
    """The metrics of the last step if an outage has prevented its evaluation; None otherwise, and once it is done."""
    held: HeldBatch | None = None
    """The batch of the next step, if it is sampled already."""


@dataclass(frozen=True)
class RetentionPolicy:
    """The checkpoints to keep; all others are removed."""

    last: int = 2
    """Number of newest checkpoints to keep."""
    best: int = 0
    """Number of checkpoints of the highest held-out accuracy to keep besides."""


@dataclass(frozen=True)
class _Pending:
    """A save in progress."""

    partial: Path
    final: Path
    writers: list[RoleWriter]
    rng: list[dict[str, Any]]
    state: RunState


class CheckpointStore:
    """The checkpoints of one run directory. Every method is collective over all ranks.

    Args:
        folder: run_dir/checkpoints.
        topology: the layout.
        retention: the checkpoints to keep.
        in_background: write while training continues.
        attempt: number of this attempt of the run; names the partial folders.
        fence: entered by rank 0 around every change of the folder; raises when another attempt has taken over.
    """

    def __init__(
        self,
        folder: Path,
        topology: Topology,
        retention: RetentionPolicy | None = None,
        in_background: bool = False,
        attempt: int = 0,
        fence: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._folder = folder
        self._topology = topology
        self._retention = retention or RetentionPolicy()
        self._in_background = in_background
        self._attempt = attempt
        self._fence = fence
        self._pending: _Pending | None = None

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, as rank 0 sees the file system; None without one."""
        found = self._complete()
        return found[-1] if found else None

    def newest_sound(
        self,
        on_damage: Literal["fallback", "stop"] = "fallback",
        warn: Callable[[str], None] = lambda _: None,
    ) -> Path | None:
        """Return the newest checkpoint whose files are all as they were written; None where there is no checkpoint.

        Newer ones that are damaged are reported to `warn` and set aside, never removed. So is a folder that was never
        complete, such as half a copy: it would be in the way of its step's save.

        Raises:
            ValueError: a checkpoint is damaged and on_damage is "stop", or every checkpoint is damaged: whether to
                start from nothing is for the user to decide.
        """
        damaged: dict[Path, str] = {}
        may_start_anew = True
        for checkpoint, was_complete in reversed(self._all_named()):
            found = self.faults(checkpoint) if was_complete else [NEVER_COMPLETE]
            if not found:
                self._set_aside(damaged, f"going back to {checkpoint.name}", warn)
                return checkpoint
            may_start_anew &= not was_complete
            more = f" and {len(found) - FAULTS_SHOWN} more" if len(found) > FAULTS_SHOWN else ""
            damaged[checkpoint] = f"{checkpoint} is damaged: {'; '.join(found[:FAULTS_SHOWN])}{more}"
            if on_damage == "stop":
                raise ValueError(
                    f"{damaged[checkpoint]}. Restore the file, or set checkpoint.on_damage = 'fallback' to resume from "
                    "the checkpoint before"
                )
        if damaged and not may_start_anew:
            raise ValueError(
                "\n".join(damaged.values())
                + "\nno checkpoint is sound: restore the files, or choose another run_dir to start anew"
            )
        self._set_aside(damaged, "there is no other checkpoint, so the run begins at its first step", warn)
        return None

    def tidy(self) -> None:
        """Remove what interrupted saves and removals left, and the checkpoints not to keep. Call it at the start."""

        def tidy() -> None:
            clear_leftovers(self._folder, self._attempt)
            self._prune()

        self._on_first_rank(tidy)

    def faults(self, checkpoint: Path) -> list[str]:
        """Return what is wrong with a checkpoint's files by its manifest; the ranks share the reading."""
        try:
            entries = read_manifest(checkpoint)
        except ValueError as error:
            mine = [str(error)]
        else:
            mine = faults(checkpoint, share(entries, self._topology.world_size, self._topology.rank))
            mine += unlisted(checkpoint, entries) if self._topology.rank == 0 else []
        return sorted({line for of_rank in all_gather_lists(mine, self._topology) for line in of_rank})

    def save(self, roles: Mapping[str, Trainable], state: RunState) -> Path | None:
        """Write a checkpoint, then remove those not to keep. It appears complete, by a final rename.

        A save in progress is completed first. Checkpoints that exist already survive every error.

        Returns:
            The checkpoint, or None when it is written in the background: `poll` or `finish` returns it then.

        Raises:
            OSError: a rank cannot write, for instance because the disk is full; raised on every rank.
            FencedError: another attempt of the run has taken over.
        """
        self.finish()
        final = self._folder / name_of(state.step_index)
        partial = partial_of(final, self._attempt)
        self._on_first_rank(lambda: make_partial(partial, [*roles], self._attempt))
        self._pending = _Pending(partial, final, [], [], state)
        try:
            # In the foreground, one role after another: planning both at once would hold both copies in memory.
            for group in [[*roles]] if self._in_background else [[role] for role in roles]:
                self._write({role: roles[role] for role in group})
        except OSError:
            self._abandon()
            raise
        self._pending.rng.extend(of_rank[0] for of_rank in all_gather_lists([_rng_state()], self._topology))
        return None if self._in_background else self.finish()

    def poll(self) -> Path | None:
        """Complete the save in progress if every rank has written its part; return it or None. Raises like save."""
        if self._pending is None or any_rank(not self._is_done(), self._topology):
            return None
        return self._complete_pending()

    def finish(self) -> Path | None:
        """Wait for the save in progress and complete it; return None without one. Raises like save."""
        if self._pending is None:
            return None
        # Ranks that are done wait in a collective, whose deadline is platform.timeout_s: give up before it expires.
        deadline = time.monotonic() + 0.8 * self._topology.platform.timeout.total_seconds()
        while not self._is_done() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if any_rank(not self._is_done(), self._topology):
            self._abandon()
            raise OSError(
                f"the checkpoint could not be written to {self._folder}: a writer did not finish within "
                "platform.timeout_s. Earlier checkpoints are complete"
            )
        return self._complete_pending()

    def load(self, checkpoint: Path, roles: Mapping[str, Trainable]) -> RunState:
        """Restore every role, and this rank's random states if the job has the size that wrote them.

        Raises:
            ValueError: the checkpoint lacks a role or is damaged.
        """
        # Rank 0 looks first: a rank that failed alone would leave the others waiting in the collective load.
        run, states = on_first_rank(lambda: _examine(checkpoint, [*roles]), self._topology)
        held = on_first_rank(lambda: _read_held(checkpoint), self._topology)
        for role, trainable in roles.items():
            _restore(trainable, checkpoint / role)
        if len(states) == self._topology.world_size:
            _set_rng_state(states[self._topology.rank])
        return RunState(
            run["step_index"],
            run["prompt_stream"],
            run["seed"],
            run.get("guards", {}),
            run.get("accuracy"),
            run.get("collector", {}),
            owed_metrics(checkpoint, run),
            held,
        )

    def note_evaluation(self, step_index: int, accuracy: float | None) -> None:
        """Note in a checkpoint that the evaluation it owes has been done.

        Raises:
            OSError: the note cannot be written; raised on every rank.
            FencedError: another attempt of the run has taken over.
        """
        checkpoint = self._folder / name_of(step_index)
        self._on_first_rank(lambda: note_evaluation(checkpoint, accuracy))

    def _all_named(self) -> list[tuple[Path, bool]]:
        return on_first_rank(lambda: all_named(self._folder), self._topology)

    def _complete(self) -> list[Path]:
        return on_first_rank(lambda: complete(self._folder), self._topology)

    def _set_aside(self, damaged: Mapping[Path, str], consequence: str, warn: Callable[[str], None]) -> None:
        for checkpoint, description in damaged.items():
            # Its name must be free: the run will save this step again.
            aside = self._on_first_rank(lambda checkpoint=checkpoint: set_aside(checkpoint))
            warn(f"{description}. It is set aside as {aside.name}; {consequence}")

    def _write(self, roles: Mapping[str, Trainable]) -> None:
        """Plan, then write, some roles of the save in progress.

        Rank 0 writes the small files alone, inside Megatron, where an error would leave the other ranks waiting. Disk
        space for them is therefore reserved while the large files are written.
        """
        pending = self._pending
        assert pending is not None
        self._on_first_rank(lambda: release_space(pending.partial))
        with ExitStack() as held:
            for trainable in roles.values():
                held.enter_context(trainable.residency.hold("weights", "optimizer"))
            writers = [
                RoleWriter(_sharded_state(trainable), pending.partial / role, self._topology)
                for role, trainable in roles.items()
            ]
            pending.writers.extend(writers)
            self._on_first_rank(lambda: reserve_space(pending.partial))
            for writer in writers:
                writer.write(self._in_background)
        # A barrier: no rank changes its weights before all have written or forked.
        any_rank(False, self._topology)

    def _is_done(self) -> bool:
        assert self._pending is not None
        return all(writer.is_done() for writer in self._pending.writers)

    def _complete_pending(self) -> Path:
        pending = self._pending
        assert pending is not None
        try:
            self._on_first_rank(lambda: release_space(pending.partial))
            for writer in pending.writers:
                writer.finish()
            self._on_first_rank(lambda: self._commit(pending))
        except (OSError, ValueError):
            self._abandon()
            raise
        self._pending = None
        self._on_first_rank(self._prune)
        return pending.final

    def _prune(self) -> None:
        prune(self._folder, self._retention.last, self._retention.best, self._attempt)

    def _commit(self, pending: _Pending) -> None:
        partial, state = pending.partial, pending.state
        states = io.BytesIO()
        torch.save(
            pending.rng, states
        )  # To a file, torch would report a full disk as a RuntimeError without a name.
        (partial / "rng.pt").write_bytes(states.getvalue())
        if state.held is not None:
            write_held(partial, state.held)
        run = {
            "step_index": state.step_index,
            "seed": state.seed,
            "prompt_stream": state.prompt_stream,
            "guards": state.guards,
            "collector": state.collector,
            "accuracy": state.accuracy,
            "owed_metrics": state.owed_metrics,
            "roles": [path.name for path in sorted(partial.iterdir()) if path.is_dir()],
            "world_size": self._topology.world_size,
            "tensor": self._topology.tensor_size,
            "pipeline": self._topology.pipeline_size,
            "megatron_prime": __version__,
        }
        (partial / "run.json").write_text(json.dumps(run, indent=1))
        write_manifest(partial)
        publish(partial, pending.final)

    def _abandon(self) -> None:
        """Give up the save in progress and remove its files, which may have filled the disk. Not collective."""
        assert self._pending is not None
        for writer in self._pending.writers:
            writer.abandon()
        if self._topology.rank == 0:
            shutil.rmtree(self._pending.partial, ignore_errors=True)
        self._pending = None

    def _on_first_rank(self, action: Callable[[], Item]) -> Item:
        """Run a change of the folder on rank 0; all ranks wait for it, and return its result or raise its error."""

        def fenced() -> Item:
            with self._fence():
                return action()

        return on_first_rank(fenced, self._topology)


def load_weights(built: BuiltModel, checkpoint: Path, role: str, topology: Topology) -> None:
    """Fill a model of any layout with the weights of a role. Collective over all ranks.

    Raises:
        ValueError: the checkpoint is incomplete or lacks the role.
    """
    on_first_rank(lambda: _examine(checkpoint, [role]), topology)
    folder = checkpoint / role
    fill_chunks(built.chunks, _load(chunk_states(built.chunks, folder), folder))


def _examine(checkpoint: Path, roles: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return run.json and the random states of every rank, after checking that the roles' folders hold no code."""
    run = require_roles(checkpoint, roles)
    for role in roles:
        if not (checkpoint / role).is_dir():
            raise _not_loaded(checkpoint, f"{role} is missing")
    try:
        for role in roles:
            refuse_code(checkpoint / role)
        return run, load_plain(checkpoint / "rng.pt")
    except UnknownContentError as error:
        raise ValueError(
            f"{checkpoint} may be undamaged, but holds what megatron_prime {__version__} does not load: {error}. It "
            f"was written by {_writer_of(checkpoint)}, and is left as it is: continue with that version, if you trust "
            "whoever wrote the checkpoint"
        ) from error
    except ValueError as error:
        raise _not_loaded(checkpoint, str(error)) from error


def _read_held(checkpoint: Path) -> HeldBatch | None:
    try:
        return read_held(checkpoint)
    except ValueError as error:
        raise _not_loaded(checkpoint, str(error)) from error


def _sharded_state(trainable: Trainable, written: Path | None = None) -> dict[str, Any]:
    """Return a role's sharded state; `written` is the folder that it is to be loaded from, if it is."""
    if written is None:
        trainable.fill_moments()
    model, is_loading = chunk_states(trainable.built.chunks, written), written is not None
    return model | {
        "optimizer": trainable.optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=OPTIMIZER_FORMAT
        ),
        "schedule": trainable.schedule.state_dict(),
    }


def _restore(trainable: Trainable, folder: Path) -> None:
    with trainable.residency.hold("weights", "optimizer"):
        state = _load(_sharded_state(trainable, folder), folder)
        fill_chunks(trainable.built.chunks, state)
        trainable.optimizer.load_state_dict(state["optimizer"])
        trainable.schedule.load_state_dict(state["schedule"])


def _load(template: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        state = dist_checkpointing.load(template, str(folder))
    except (CheckpointingException, CheckpointException) as error:
        # torch gathers the errors of all ranks into one exception; the first one says enough.
        one = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise _not_loaded(folder.parent, f"{folder.name}: {type(one).__name__}: {one}") from error
    assert isinstance(state, dict)  # A second value is returned only by strict modes that report mismatches.
    return state


def _not_loaded(checkpoint: Path, reason: str) -> ValueError:
    return ValueError(
        f"{checkpoint} cannot be loaded by megatron_prime {__version__}: {reason}. It was written by "
        f"{_writer_of(checkpoint)}, and is left as it is: restore its files, or move it away to resume from the "
        "checkpoint before"
    )


def _writer_of(checkpoint: Path) -> str:
    try:
        return f"megatron_prime {read_run(checkpoint)['megatron_prime']}"
    except (ValueError, KeyError):
        return "an unknown version"


def _rng_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "parallel": _parallel_streams().get_states(),
    }


def _parallel_streams() -> Any:  # noqa: ANN401 - Megatron's tracker, or the CPU shim's
    return get_cuda_rng_tracker()


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    _parallel_streams().set_states(state["parallel"])
