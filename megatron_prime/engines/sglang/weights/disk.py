"""How weights reach SGLang servers: the interface of a transport, and the one over files."""

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.hf.checkpoint import HFCheckpointReader, HFCheckpointWriter, TensorSpec
from megatron_prime.rollout.engine import EngineError, WeightSyncError
from megatron_prime.rollout.weight_intake import WeightIntake, tensor_checksum
from megatron_prime.types import WeightBucket

MAX_TRIES = 4
"""Deliveries to one server that dies over each of them."""


class WeightPath(Protocol):
    """Brings weights into the servers. Collective: every rank calls each method at the same time, on its main thread.

    Coroutines run on the driver's loop by `Driver.run`.
    """

    def begin(self, policy_version: int) -> None:
        """Open a sync; the engine has checked that none is open."""
        ...

    def load(self, bucket: WeightBucket) -> None:
        """Take this rank's blocks; the caller may overwrite them afterwards. Raises as `Engine.load_weights` says."""
        ...

    def end(self, policy_version: int) -> None:
        """Returns when every server serves policy_version and says so. Raises WeightSyncError, on every rank."""
        ...

    def resync(self, server: int) -> None:
        """Give the last complete weights to one server, by index, that lost them, while others may sample.

        Raises ServerUnreachableError when the server dies over it (it comes back and this is called again); any other
        EngineError ends the rollout.
        """
        ...

    def checksums(self) -> dict[str, str]:
        """`tensor_checksum` of every tensor of the last complete sync, by HF name."""
        ...

    def close(self) -> None:
        """Drop what it holds. Not collective."""
        ...


WeightPathFactory = Callable[[Driver, Fleet | None], WeightPath]
"""Makes the transport of an engine; the fleet is None on all ranks but the driver."""


class DiskWeights:
    """Weights by way of an HF checkpoint that the servers read; see `WeightPath`.

    Simple and slow; the blocks of all tensors must reach the driver, whose memory holds the whole model during a sync.
    Attached servers need to see the folder under the same path.
    """

    def __init__(
        self,
        driver: Driver,
        fleet: Fleet | None,
        *,
        model_path: Path,
        folder: Path,
        tensors: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        """Keep the parts.

        Args:
            driver: of the engine.
            fleet: of the engine; None where this is not the driver, whose blocks are ignored.
            model_path: HF checkpoint whose config and tokenizer go beside the weights.
            folder: checkpoints are written in here, the newest is kept.
            tensors: shape of every tensor of the model, by HF name.
            dtype: of the files.
        """
        self._driver = driver
        self._fleet = fleet
        self._model_path = model_path
        self._folder = folder
        self._specs = {name: TensorSpec(shape, dtype) for name, shape in tensors.items()}
        self._tensors: dict[str, torch.Tensor] = {}
        self._intake: WeightIntake | None = None
        self._current: Path | None = None

    def begin(self, policy_version: int) -> None:
        """See `WeightPath.begin`."""
        if self._fleet is not None:
            self._tensors = {
                name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in self._specs.items()
            }
            self._intake = WeightIntake(self._tensors)
            self._intake.begin(policy_version)

    def load(self, bucket: WeightBucket) -> None:
        """See `WeightPath.load`."""
        if self._intake is not None:
            self._intake.load(bucket)

    def end(self, policy_version: int) -> None:
        """See `WeightPath.end`."""
        self._driver.run(lambda: self._deliver(policy_version))

    def resync(self, server: int) -> None:
        """See `WeightPath.resync`."""
        self._driver.run(lambda: self._redeliver(server))

    def checksums(self) -> dict[str, str]:
        """See `WeightPath.checksums`. Of the files."""
        return self._driver.run(lambda: asyncio.to_thread(self._checksums))

    def close(self) -> None:
        """See `WeightPath.close`. Removes the checkpoint that the last sync wrote."""
        self._tensors, self._intake = {}, None
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            self._current = None

    async def _deliver(self, policy_version: int) -> None:
        assert self._fleet is not None
        path = await asyncio.to_thread(self._write, policy_version)
        await update_all_from_disk(self._fleet, path, policy_version)
        previous, self._current = self._current, path
        if previous is not None and previous != path:
            await asyncio.to_thread(shutil.rmtree, previous, ignore_errors=True)

    async def _redeliver(self, server: int) -> None:
        assert self._fleet is not None
        if self._current is None:
            raise WeightSyncError("there are no weights to give to a restarted server")
        client = await self._fleet.client(server)
        await _load(client, self._current, self._fleet.policy_version)

    def _write(self, policy_version: int) -> Path:
        assert self._intake is not None
        tensors, intake = self._tensors, self._intake
        self._tensors, self._intake = {}, None
        intake.end()
        path = self._folder / f"weights-{policy_version}"
        shutil.rmtree(path, ignore_errors=True)
        with HFCheckpointWriter(path, self._specs, companions_from=self._model_path) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        return path

    def _checksums(self) -> dict[str, str]:
        if self._current is None:
            return {}
        reader = HFCheckpointReader(self._current)
        return {
            name: tensor_checksum(reader.read_slice(name, 0, 0, spec.shape[0]))
            for name, spec in self._specs.items()
        }


async def update_all_from_disk(fleet: Fleet, path: Path, policy_version: int) -> None:
    """Have every server load the HF checkpoint in `path`. Raises WeightSyncError when one can't."""
    results = await asyncio.gather(
        *(update_from_disk(fleet, server, path, policy_version) for server in range(fleet.num_servers)),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, EngineError):
            raise WeightSyncError(
                f"version {policy_version} did not reach every server: {result}"
            ) from result
        if isinstance(result, BaseException):
            raise result


async def update_from_disk(fleet: Fleet, server: int, path: Path, policy_version: int) -> None:
    """Update one server; one that dies over it is restarted by its supervisor and updated again.

    Raises ServerRefusedError when it can't load `path` (it serves its old weights on), EngineError when it keeps dying.
    """
    fault: ServerUnreachableError | None = None
    for _ in range(MAX_TRIES):
        client = await fleet.client(server)
        try:
            await _load(client, path, policy_version)
            served = await client.weight_version()
        except ServerUnreachableError as error:
            fault = error
            continue
        if served != str(policy_version):
            raise ServerRefusedError(
                f"{client.url} says it serves {served!r} after the update to {policy_version}"
            )
        return
    raise EngineError(f"SGLang server {server} died over {MAX_TRIES} weight updates; the last fault: {fault}")


async def _load(client: SGLangClient, path: Path, policy_version: int) -> None:
    """Update a server paused by retraction.

    Otherwise SGLang can't flush its cache while it winds up requests that it has answered, and reports a failure.
    """
    await client.pause_generation("retract")
    try:
        await client.update_weights_from_disk(str(path.absolute()), str(policy_version))
    finally:
        await client.continue_generation()
