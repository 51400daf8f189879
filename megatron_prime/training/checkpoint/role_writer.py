"""Writing one role of a checkpoint with Megatron's dist_checkpointing, in the foreground or in a forked process.

A fork has a snapshot of the memory, so the trainer may change weights right after it (on a GPU they are copied to the
host first). Collective operations happen before the fork and after all forks have ended.
"""

import multiprocessing
import os
import shutil
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch.distributed.checkpoint.api import CheckpointException  # noqa: TID251 - a name, no communication

from megatron_prime.parallel.lifeline import die_with_parent, ignore_requests_to_end, tie_forked_children
from megatron_prime.training.checkpoint.manifest import SUMS_SUFFIX, write_sums

OPTIMIZER_FORMAT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}

_manager: SyncManager | None = None


class RoleWriter:
    """Writes one role to its folder.

    The constructor plans the save, and rank 0 writes what all ranks have in common; `finish` agrees on what was
    written. Both are collective over all ranks, and raise OSError on every rank when a rank cannot write.

    Args:
        state: sharded state dict of the role.
        folder: the folder to write into, which exists.
        rank: rank of this process.
    """

    def __init__(self, state: dict[str, Any], folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._process: BaseProcess | None = None
        _use_own_queue()
        try:
            request = dist_checkpointing.save(state, str(folder), async_sharded_save=True)
        except CheckpointException as error:
            raise _could_not_write(folder, error) from error
        assert isinstance(request, AsyncRequest)
        self._request = request

    def write(self, in_background: bool) -> None:
        """Write this rank's part; in the background, return as soon as the state may change."""
        request = self._request
        if request.async_fn is None:
            return
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[1] = request.preload_fn()
        work = (request.async_fn, arguments, dict(request.async_fn_kwargs), self._folder, self._rank)
        tie_forked_children()  # Megatron forks writers in the foreground too.
        if not in_background:
            _write(*work)
            return
        self._process = multiprocessing.get_context("fork").Process(target=_write_alone, args=work)
        self._process.start()

    def is_done(self) -> bool:
        """Return whether this rank has nothing left to write, whether it succeeded or failed."""
        return self._process is None or not self._process.is_alive()

    def finish(self) -> None:
        """Agree on what was written, and write the role's metadata. Every rank must be done."""
        if self._process is not None:
            self._process.join()
        try:
            for finalize in self._request.finalize_fns:
                finalize()
        except CheckpointException as error:
            raise _could_not_write(self._folder, error) from error

    def abandon(self) -> None:
        """Kill a write whose result is no longer wanted."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _write_alone(*work: Any) -> None:  # noqa: ANN401
    # A fork has none of the threads of torch's pool, and would wait for them forever.
    torch.set_num_threads(1)
    _write(*work)


def _write(function: Any, arguments: list[Any], keywords: dict[str, Any], folder: Path, rank: int) -> None:  # noqa: ANN401
    function(*arguments, **keywords)
    sums = folder / f"__{rank}{SUMS_SUFFIX}"
    try:
        write_sums(folder.glob(f"__{rank}_*.distcp"), sums)
    except OSError:
        # finish() reports whether Megatron could write; without sums, rank 0 computes the checksums itself.
        sums.unlink(missing_ok=True)


def _could_not_write(folder: Path, error: CheckpointException) -> OSError:
    reasons = sorted({str(fault) for fault, _ in error.failures.values()} - {""})
    # Rank 0 may already be removing the save's folder as it gives up too; the folder above all saves stays.
    free = shutil.disk_usage(folder.absolute().parents[1]).free / 2**20
    return OSError(
        f"the checkpoint could not be written to {folder} ({free:.0f} MiB are free there): {'; '.join(reasons)}. "
        "Earlier checkpoints are complete: fix the file system and start again"
    )


def _use_own_queue() -> None:
    """Give the next save its own queue of results, in a manager process that ends when this rank does.

    Megatron has one queue for all saves: two roles in progress at once would take each other's results. The manager
    that Megatron starts itself relies on an orderly exit, and would stay forever after a kill.
    """
    global _manager
    if _manager is None:
        _manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        _manager.start(initializer=_begin_manager, initargs=(os.getpid(),))
    filesystem_async._results_queue = _manager.Queue()


def _begin_manager(parent_pid: int) -> None:
    die_with_parent(parent_pid)
    ignore_requests_to_end()  # The save that a request leads to needs the queue.
