"""Writing one role of a checkpoint with Megatron's dist_checkpointing, in a forked process.

A fork has a snapshot of the memory, so the trainer may change weights right after it (on a GPU they are copied to the
host first). Collective operations happen before the fork and after all forks have ended. In the foreground the trainer
waits for the fork, which ends when one of the writers that Megatron forks in turn is killed; the trainer would not.
"""

import gc
import multiprocessing
import os
import shutil
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.base import StrategyAction, register_default_strategy
from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException  # noqa: TID251 - a name, no communication

from megatron_prime.parallel.collectives import on_first_rank
from megatron_prime.parallel.lifeline import tie_forked_children
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.checkpoint.fork_results import ForkResults
from megatron_prime.training.checkpoint.manifest import SUMS_SUFFIX, write_sums

FORMAT = ("torch_dist", 1)
POLL_S = 0.1
"""Time between two looks for writers that were killed."""
OPTIMIZER_FORMAT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    # The shards of a bucket are gathered in the host memory of one data-parallel rank. Otherwise every rank gathers
    # them on its GPU, where a whole model's states do not fit beside its weights.
    "distrib_optim_fully_reshardable_mem_efficient": True,
}


class RoleWriter:
    """Writes one role to its folder.

    The constructor plans the save, and rank 0 writes what all ranks have in common; `finish` agrees on what was
    written. Both are collective over all ranks, and raise OSError on every rank when a rank cannot write.

    Args:
        state: sharded state dict of the role.
        folder: the folder to write into, which exists.
        topology: the layout.
    """

    def __init__(self, state: dict[str, Any], folder: Path, topology: Topology) -> None:
        self._folder = folder
        self._topology = topology
        self._process: BaseProcess | None = None
        self._strategy = _ShardedStrategy(*FORMAT)
        self._results = filesystem_async._results_queue = ForkResults()
        _common.errors.clear()
        try:
            request = dist_checkpointing.save(state, str(folder), self._strategy, async_sharded_save=True)
        except CheckpointException as error:
            raise _could_not_write(folder, _reasons(error)) from error
        self._raise_anywhere(_common.errors)
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
        work = (request.async_fn, arguments, dict(request.async_fn_kwargs), self._folder, self._topology.rank)
        tie_forked_children()
        self._process = multiprocessing.get_context("fork").Process(
            target=_write_alone, args=(self._results, *work)
        )
        self._process.start()
        if not in_background:
            self._process.join()

    def is_done(self) -> bool:
        """Return whether this rank has nothing left to write, whether it succeeded or failed."""
        return self._process is None or not self._process.is_alive()

    def finish(self) -> None:
        """Agree on what was written, and write the role's metadata. Every rank must be done."""
        if self._process is not None:
            self._process.join()
        # The last one writes metadata.json on rank 0 while the other ranks wait; here, they learn of an error.
        *finalize_fns, _ = self._request.finalize_fns
        try:
            for finalize in finalize_fns:
                finalize()
        except CheckpointException as error:
            raise _could_not_write(self._folder, _reasons(error)) from error
        self._raise_anywhere(self._strategy.errors)
        on_first_rank(self._write_format, self._topology)

    def abandon(self) -> None:
        """Kill a write whose result is no longer wanted."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _write_format(self) -> None:
        try:
            save_config(CheckpointingConfig(*FORMAT), str(self._folder))
        except OSError as error:
            raise _could_not_write(self._folder, [str(error)]) from error

    def _raise_anywhere(self, errors: list[Exception]) -> None:
        """Raise OSError on every rank if rank 0 could not write its own files. Collective over all ranks."""

        def check() -> None:
            if errors:
                raise _could_not_write(self._folder, [str(error) for error in errors])

        on_first_rank(check, self._topology)


class _CommonStrategy(TorchCommonSaveStrategy):
    """Megatron's writer of common.pt on rank 0, which keeps an error until every rank can learn of it.

    Raised at once, it would leave the other ranks waiting in the planning of the save.
    """

    def __init__(self, backend: str, version: int) -> None:
        super().__init__(backend, version)
        self.errors: list[Exception] = []

    def save_common(self, common_state_dict: Any, checkpoint_dir: Any) -> None:  # noqa: ANN401
        try:
            super().save_common(common_state_dict, checkpoint_dir)
        except (OSError, RuntimeError) as error:  # On a full disk, torch.save raises a RuntimeError.
            self.errors.append(error)


class _ShardedStrategy(TorchDistSaveShardedStrategy):
    """Megatron's writer of shards, which keeps an error of rank 0 in writing `.metadata`, for the same reason."""

    def __init__(self, backend: str, version: int) -> None:
        super().__init__(backend, version)
        self.errors: list[Exception] = []

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> AsyncRequest:  # noqa: ANN401
        write_metadata = writer.finish

        def finish(*arguments: Any) -> None:  # noqa: ANN401
            try:
                write_metadata(*arguments)
            except (OSError, RuntimeError) as error:
                self.errors.append(error)

        writer.finish = finish
        return super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret)


_common = _CommonStrategy("torch", 1)
register_default_strategy(StrategyAction.SAVE_COMMON, _common.backend, _common.version, _common)


def _write_alone(results: ForkResults, *work: Any) -> None:  # noqa: ANN401
    # A collection could free GPU memory, and a fork must not call CUDA.
    gc.disable()
    # A fork has none of the threads of torch's pool, and would wait for them forever.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_a_killed_writer, args=(results,), daemon=True).start()
    _write(*work)


def _end_with_a_killed_writer(results: ForkResults) -> None:
    """End this process if one that it has forked is killed, as where memory is short: Megatron waits for it forever."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # There is none yet, or none any more.
            ended = None
        if ended is not None and ended.si_code != os.CLD_EXITED:
            results.put(RuntimeError(f"a process that wrote it was killed by signal {ended.si_status}"))
            os._exit(1)
        time.sleep(POLL_S)


def _write(function: Any, arguments: list[Any], keywords: dict[str, Any], folder: Path, rank: int) -> None:  # noqa: ANN401
    function(*arguments, **keywords)
    sums = folder / f"__{rank}{SUMS_SUFFIX}"
    try:
        write_sums(folder.glob(f"__{rank}_*.distcp"), sums)
    except OSError:
        # finish() reports whether Megatron could write; without sums, rank 0 computes the checksums itself.
        sums.unlink(missing_ok=True)


def _reasons(error: CheckpointException) -> list[str]:
    return sorted({str(fault) for fault, _ in error.failures.values()} - {""})


def _could_not_write(folder: Path, reasons: list[str]) -> OSError:
    # Rank 0 may already be removing the save's folder as it gives up too; the folder above all saves stays.
    free = shutil.disk_usage(folder.absolute().parents[1]).free / 2**20
    return OSError(
        f"the checkpoint could not be written to {folder} ({free:.0f} MiB are free there): {'; '.join(reasons)}. "
        "Earlier checkpoints are complete: fix the file system and start again"
    )
