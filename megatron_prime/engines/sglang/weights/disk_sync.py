"""The weight sync by way of an HF checkpoint on disk, which rank 0 writes and the servers read."""

import asyncio
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_prime.engines.sglang.disk_loading import load_everywhere, reload
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.hf.checkpoint import HFCheckpointWriter, TensorSpec
from megatron_prime.resharding.transport import RankTransport
from megatron_prime.rollout.engine import WeightSyncError
from megatron_prime.rollout.weight_intake import WeightIntake


class DiskSync:
    """Writes every version as an HF checkpoint for the servers. Implements `rollout.weight_sync.WeightSync`.

    Simple and slow: rank 0 needs memory for the whole model during a sync. Attached servers must see the folder under
    the same path.
    """

    def __init__(
        self,
        engine: SGLangEngine,
        transport: RankTransport,
        *,
        model_path: Path,
        folder: Path,
        tensors: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        """Make the sync.

        Args:
            engine: the servers.
            transport: delivers whole tensors to training rank 0.
            model_path: HF checkpoint whose config and tokenizer are copied beside the weights.
            folder: parent of the checkpoints, of which the newest is kept.
            tensors: shape of every tensor of the model, by HF name.
            dtype: of the files.
        """
        self._engine = engine
        self._transport = transport
        self._model_path = model_path
        self._folder = folder
        self._specs = {name: TensorSpec(shape, dtype) for name, shape in tensors.items()}
        self._current: Path | None = None
        """The checkpoint that the servers have, on the driver."""

    def push(self, policy_version: int) -> dict[str, float]:
        """See `WeightSync.push`."""
        with self._engine.weight_update(policy_version, self):
            tensors, error = self._gather(policy_version)
            self._engine.driver.run(lambda: self._deliver(policy_version, tensors, error))
        num_bytes = sum(spec.dtype.itemsize * math.prod(spec.shape) for spec in self._specs.values())
        return {"gib_sent": num_bytes / (1 << 30)}

    def resync(self, server: int) -> None:
        """See `WeightSync.resync`. Has the server load the newest checkpoint."""
        self._engine.driver.run(lambda: self._redeliver(server))

    def close(self) -> None:
        """See `WeightSync.close`. Removes the checkpoint of the last sync."""
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            self._current = None

    def _gather(self, policy_version: int) -> tuple[dict[str, torch.Tensor], Exception | None]:
        """Collect all tensors on the driver. The other ranks only send, and return nothing.

        An error is returned, to be raised on every rank once all of them have sent everything.
        """
        buckets = self._transport.deliver()
        tensors: dict[str, torch.Tensor] = {}
        error: Exception | None = None
        if self._engine.driver.is_driver:
            tensors = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in self._specs.items()}
            try:
                WeightIntake(tensors).receive(policy_version, buckets)
            except (ValueError, WeightSyncError) as fault:
                error = fault
        for _ in buckets:
            pass
        return tensors, error

    async def _deliver(
        self, policy_version: int, tensors: Mapping[str, torch.Tensor], error: Exception | None
    ) -> None:
        if error is not None:
            raise error
        # In a thread, since writing a large model would block the event loop for minutes.
        path = await asyncio.to_thread(self._write, policy_version, tensors)
        await load_everywhere(self._engine.open_fleet(), path, policy_version)
        # Only now: until every server has the new checkpoint, a resync needs the old one.
        previous, self._current = self._current, path
        if previous is not None and previous != path:
            await asyncio.to_thread(shutil.rmtree, previous, ignore_errors=True)

    async def _redeliver(self, server: int) -> None:
        assert self._current is not None, "only servers that lost the weights of a push are resynced"
        await reload(self._engine.open_fleet(), server, self._current)

    def _write(self, policy_version: int, tensors: Mapping[str, torch.Tensor]) -> Path:
        path = self._folder / f"weights-{policy_version}"
        shutil.rmtree(path, ignore_errors=True)
        with HFCheckpointWriter(path, self._specs, companions_from=self._model_path) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        return path
