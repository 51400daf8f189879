"""Checkpoints of a whole run, by Megatron's dist_checkpointing: complete or absent, whenever the run is killed.

run_dir/checkpoints/step_00000010/
    policy/  prm/       weights, optimizer moments and LR schedule of each role, sharded
    rng.pt              random states of every rank
    run.json            steps done, data position, versions; written last before the rename
run_dir/checkpoints/.step_00000020.partial/     a save that is under way, or that a kill interrupted
"""

import json
import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException  # noqa: TID251 - a name, no communication

from megatron_prime import __version__
from megatron_prime.models.builder import BuiltModel
from megatron_prime.parallel.collectives import all_gather_lists, broadcast_object
from megatron_prime.parallel.lifeline import die_with_parent
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.trainable import Trainable

OPTIMIZER_FORMAT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}


@dataclass(frozen=True)
class RunState:
    """What a run needs besides its models to go on exactly."""

    step_index: int
    """Steps done."""
    prompt_stream: dict[str, Any]
    """state_dict of the prompt stream."""
    seed: int
    guards: dict[str, Any] = field(default_factory=dict)
    """state_dict of the guards."""


class CheckpointStore:
    """The checkpoints of one run directory. Every method is collective over all ranks.

    Args:
        folder: run_dir/checkpoints.
        keep_last: complete checkpoints to keep.
        topology: the layout.
    """

    def __init__(self, folder: Path, keep_last: int, topology: Topology) -> None:
        self._folder = folder
        self._keep_last = keep_last
        self._topology = topology

    def newest(self) -> Path | None:
        """The newest complete checkpoint, as rank 0 sees the file system."""
        found = _complete(self._folder) if self._topology.rank == 0 else []
        return broadcast_object(found[-1] if found else None, self._topology)

    def save(self, roles: Mapping[str, Trainable], state: RunState) -> Path:
        """Write a checkpoint and drop the ones beyond keep_last; it exists from the final rename on, whole.

        Raises OSError on every rank when a rank cannot write, a full disk among others; the checkpoints that were there
        before stay.
        """
        name = f"step_{state.step_index:08d}"
        partial, final = self._folder / f".{name}.partial", self._folder / name
        self._on_first_rank(lambda: _make_empty(partial, [*roles]))
        _keep_writers_on_a_lifeline()
        for role, trainable in roles.items():
            _write_role(trainable, partial / role)
        rng = [of_rank[0] for of_rank in all_gather_lists([_rng_state()], self._topology)]
        self._on_first_rank(lambda: self._commit(partial, final, rng, state))
        return final

    def load(self, checkpoint: Path, roles: Mapping[str, Trainable]) -> RunState:
        """Bring every role to the checkpoint's state, and this rank's random streams when the job has the same size.

        Raises ValueError when the checkpoint lacks a role or is damaged.
        """
        run = _read_run(checkpoint)
        missing = sorted(set(roles) - set(run["roles"]))
        if missing:
            raise ValueError(
                f"{checkpoint} has no {', '.join(missing)} (it has {', '.join(run['roles'])}): resume with the "
                "configuration that wrote it, or start a new run_dir"
            )
        for role, trainable in roles.items():
            _restore(trainable, checkpoint / role)
        try:
            states = torch.load(checkpoint / "rng.pt", weights_only=False)
        except (OSError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
            raise _damaged(checkpoint / "rng.pt", error) from error
        if len(states) == self._topology.world_size:
            _set_rng_state(states[self._topology.rank])
        return RunState(run["step_index"], run["prompt_stream"], run["seed"], run.get("guards", {}))

    def _commit(self, partial: Path, final: Path, rng: list[dict[str, Any]], state: RunState) -> None:
        torch.save(rng, partial / "rng.pt")
        roles = [path.name for path in sorted(partial.iterdir()) if path.is_dir()]
        run = {
            "step_index": state.step_index,
            "seed": state.seed,
            "prompt_stream": state.prompt_stream,
            "guards": state.guards,
            "roles": roles,
            "world_size": self._topology.world_size,
            "tensor": self._topology.tensor_size,
            "pipeline": self._topology.pipeline_size,
            "megatron_prime": __version__,
        }
        (partial / "run.json").write_text(json.dumps(run, indent=1))
        _sync_tree(partial)
        partial.rename(final)
        _sync(self._folder)
        for old in _complete(self._folder)[: -self._keep_last]:
            # Out of sight first: a kill in the middle of the removal must not leave half a checkpoint behind.
            doomed = old.with_name(f".{old.name}.removed")
            old.rename(doomed)
            shutil.rmtree(doomed)

    def _on_first_rank(self, action: Any) -> None:  # noqa: ANN401
        """Run on rank 0; all ranks wait for it and share its fault."""
        error: Exception | None = None
        if self._topology.rank == 0:
            try:
                action()
            except (OSError, ValueError, TypeError) as caught:
                error = caught
        error = broadcast_object(error, self._topology)
        if error is not None:
            raise error


def load_weights(built: BuiltModel, checkpoint: Path, role: str) -> None:
    """Fill a model with a role's weights alone, in whatever layout it is built. Collective over all ranks.

    Raises ValueError when the checkpoint is incomplete or lacks the role.
    """
    roles = _read_run(checkpoint)["roles"]
    if role not in roles:
        raise ValueError(f"{checkpoint} has no {role}; it has {', '.join(roles)}")
    template = {"model": built.module.sharded_state_dict()}
    state = _load(template, checkpoint / role)
    built.module.load_state_dict(state["model"])


def _write_role(trainable: Trainable, folder: Path) -> None:
    try:
        dist_checkpointing.save(_sharded_state(trainable, is_loading=False), str(folder))
    except CheckpointException as error:  # what torch makes of the faults of all ranks
        reasons = sorted({str(fault) for fault, _ in error.failures.values()} - {""})
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"the checkpoint could not be written to {folder} ({free:.0f} MiB are free there): {'; '.join(reasons)}. "
            "The checkpoints before it are whole: mend the file system and start again"
        ) from error


def _keep_writers_on_a_lifeline() -> None:
    """Start the manager process of Megatron's checkpoint writer ourselves, so that it ends when this rank does.

    Megatron starts it at the first save and relies on an orderly exit: after a kill it would stay for ever.
    """
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(initializer=die_with_parent, initargs=(os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
        # The queue is a proxy; the manager must live as long.
        filesystem_async._results_queue.manager = manager  # type: ignore[attr-defined]


def _complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "run.json").is_file())


def _make_empty(partial: Path, roles: list[str]) -> None:
    """Clear away what an interrupted save or removal left, and make the new folders."""
    if partial.parent.is_dir():
        for stale in partial.parent.glob(".step_*"):
            shutil.rmtree(stale)
    for role in roles:
        (partial / role).mkdir(parents=True)


def _read_run(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: {error}") from error


def _sharded_state(trainable: Trainable, is_loading: bool) -> dict[str, Any]:
    model = trainable.built.module.sharded_state_dict()
    return {
        "model": model,
        "optimizer": trainable.optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=OPTIMIZER_FORMAT
        ),
        "schedule": trainable.schedule.state_dict(),
    }


def _restore(trainable: Trainable, folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing: the checkpoint is damaged; remove it to resume from the one before"
        )
    state = _load(_sharded_state(trainable, is_loading=True), folder)
    trainable.built.module.load_state_dict(state["model"])
    trainable.optimizer.load_state_dict(state["optimizer"])
    trainable.schedule.load_state_dict(state["schedule"])


def _load(template: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        state = dist_checkpointing.load(template, str(folder))
    except CheckpointingException as error:
        raise _damaged(folder, error) from error
    except CheckpointException as error:  # what torch makes of the faults of all ranks
        first_error, _ = next(iter(error.failures.values()))
        raise _damaged(folder, first_error) from error
    assert isinstance(state, dict)  # a second value comes only for strict modes that return mismatches
    return state


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is damaged: remove the checkpoint to resume from the one before ({type(error).__name__}: {error})"
    )


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


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
