"""Writing one role of a checkpoint by Megatron's dist_checkpointing, at once or in a forked process.

A fork sees the memory as it was at that moment, so the trainer may change weights right after (on a GPU they are copied
to the host first). What must be agreed between ranks is done before the fork and after all of them have ended.
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

from megatron_prime.parallel.lifeline import die_with_parent, tie_forked_children
from megatron_prime.training.checkpoint.manifest import SUMS_SUFFIX, write_sums

OPTIMIZER_FORMAT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}

_manager: SyncManager | None = None


class RoleWriter:
    """One role on its way to its folder.

    The constructor plans, and rank 0 writes what all ranks have in common; `finish` agrees on what was written. Both
    are collective over all ranks, and raise OSError on every rank when a rank cannot write.

    Args:
        state: sharded state dict of the role.
        folder: where it goes; exists.
        rank: of this process.
    """

    def __init__(self, state: dict[str, Any], folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._process: BaseProcess | None = None
        _use_a_queue_of_its_own()
        try:
            request = dist_checkpointing.save(state, str(folder), async_sharded_save=True)
        except CheckpointException as error:
            raise _could_not_write(folder, error) from error
        assert isinstance(request, AsyncRequest)
        self._request = request

    def write(self, in_background: bool) -> None:
        """Write this rank's part; in the background, return as soon as the state is safe from changes."""
        request = self._request
        if request.async_fn is None:
            return
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[1] = request.preload_fn()
        work = (request.async_fn, arguments, dict(request.async_fn_kwargs), self._folder, self._rank)
        tie_forked_children()  # Megatron forks writers in the foreground too
        if not in_background:
            _write(*work)
            return
        self._process = multiprocessing.get_context("fork").Process(target=_write_alone, args=work)
        self._process.start()

    def is_done(self) -> bool:
        """True once this rank has nothing left to write, well or not."""
        return self._process is None or not self._process.is_alive()

    def finish(self) -> None:
        """Agree on what was written and write the role's metadata. Every rank must be done."""
        if self._process is not None:
            self._process.join()
        try:
            for finalize in self._request.finalize_fns:
                finalize()
        except CheckpointException as error:
            raise _could_not_write(self._folder, error) from error

    def abandon(self) -> None:
        """End a write that nobody waits for any more."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _write_alone(*work: Any) -> None:  # noqa: ANN401
    # The threads of torch's pool did not come along into the fork.
    torch.set_num_threads(1)
    _write(*work)


def _write(function: Any, arguments: list[Any], keywords: dict[str, Any], folder: Path, rank: int) -> None:  # noqa: ANN401
    function(*arguments, **keywords)
    sums = folder / f"__{rank}{SUMS_SUFFIX}"
    try:
        write_sums(folder.glob(f"__{rank}_*.distcp"), sums)
    except OSError:
        # What Megatron could write is told by finish(); without sums, rank 0 takes the checksums itself.
        sums.unlink(missing_ok=True)


def _could_not_write(folder: Path, error: CheckpointException) -> OSError:
    reasons = sorted({str(fault) for fault, _ in error.failures.values()} - {""})
    # Rank 0 may be removing the save's folder by now, as it gives up too: the one above all saves stays.
    free = shutil.disk_usage(folder.absolute().parents[1]).free / 2**20
    return OSError(
        f"the checkpoint could not be written to {folder} ({free:.0f} MiB are free there): {'; '.join(reasons)}. "
        "The checkpoints before it are whole: mend the file system and start again"
    )


def _use_a_queue_of_its_own() -> None:
    """Give the next save its own queue of results, in a manager process that ends when this rank does.

    Megatron has one queue for all: two roles on their way at once would take each other's results. And the manager
    that it starts itself relies on an orderly exit: after a kill it would stay for ever.
    """
    global _manager
    if _manager is None:
        _manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        _manager.start(initializer=die_with_parent, initargs=(os.getpid(),))
    filesystem_async._results_queue = _manager.Queue()
