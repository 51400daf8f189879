"""Rollouts from SGLang servers: the production implementation of `megatron_prime.rollout.engine.Engine`.

main thread, all ranks     generate / weight updates --> Driver: meet, wait, share the result
driver's loop (rank 0)     Generation --> Fleet / Balancer --> SGLangClient --HTTP--> servers
supervisor threads         SupervisedServer --> guardian process --> server
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.client import ServerUnreachableError
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.generation import Generation, GenerationSettings
from megatron_prime.engines.sglang.launch import (
    LaunchPlan,
    check_experts,
    check_quantization,
    check_transport,
    install_quantized,
    install_receiver,
)
from megatron_prime.engines.sglang.memory import ServerMemory, is_colocated
from megatron_prime.engines.sglang.nodes import Nodes, NodeServers, Server, start_everywhere
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.engines.sglang.sampling import ModelLimits, check_request
from megatron_prime.engines.sglang.weights.disk import (
    MAX_TRIES,
    DiskWeights,
    WeightPath,
    WeightPathFactory,
    update_all_from_disk,
    update_from_disk,
)
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import read_shape
from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.types import Prompt, Rollout, SamplingParams, WeightBucket

_LOG = logging.getLogger(__name__)
_CLOSE_S = 30.0


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was made; on rank 0."""

    num_recoveries: int = 0
    """Servers brought back."""
    num_replayed: int = 0
    """Responses submitted again because a server failed."""
    num_resampled_groups: int = 0
    """Groups sampled again because their versions differed."""


class SGLangEngine:
    """See `megatron_prime.rollout.engine.Engine`; every method is collective unless it says otherwise.

    Rank 0 starts the servers on its node, or each node's first rank those there, or they are attached to by URL; rank 0
    talks to them for all ranks.

    Unlike the contract asks, equal stream keys repeat a response only with rollout.sglang.deterministic: SGLang draws
    from one stream a server otherwise. The model's own end-of-sequence tokens end a response besides params' ones.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        device: Literal["cpu", "cuda"],
        dtype: Literal["fp32", "bf16"],
        seed: int,
        settings: SGLangConfig,
        run_dir: Path,
        ranks: Ranks | None = None,
        weights: WeightPathFactory | None = None,
    ) -> None:
        """Start the servers in the background; the first weight sync waits for them.

        Args:
            model_path: HF checkpoint of the architecture.
            device: of the servers.
            dtype: of the served weights.
            seed: of the sampling.
            settings: the section rollout.sglang.
            run_dir: logs and weight files go to its folder `sglang`.
            ranks: this process among the training ranks.
            weights: how weights travel; default by files.

        Raises:
            ValueError: no config.json in model_path, no engine environment, or settings that SGLang can't serve.
        """
        ranks = ranks or Ranks()
        self._model_path = Path(model_path)
        self._seed = seed
        self._settings = settings
        self._limits = ModelLimits.of(self._model_path)
        self._routing = RoutingReader.of(self._model_path) if settings.routing_replay else None
        if not settings.urls and not settings.python.is_file():
            raise ValueError(
                f"rollout.sglang.python = {settings.python} does not exist: build the engine environment with "
                "`make sglang`, or name its interpreter"
            )
        if not settings.urls:
            check_experts(settings, device)
            check_quantization(settings, device)
        self._policy_version = NO_WEIGHTS
        self._incoming_version: int | None = None
        self._generation: Generation | None = None
        self._num_calls = 0
        self.stats = EngineStats()
        self._driver = Driver(ranks, self._resync)
        folder = run_dir / "sglang"
        self._supervised: list[Server] = []
        self._node_servers: NodeServers | None = None
        self.nodes = Nodes((0,), ("127.0.0.1",))
        """Those with servers, equal on every rank."""
        if settings.nodes == "all" and not settings.urls:
            self.nodes = Nodes.find(ranks, int(os.environ.get("LOCAL_RANK", "0")))
        self._loaded_from: Path | None = None
        self._is_closed = False
        self.fleet: Fleet | None = None
        """The servers, on rank 0; None elsewhere."""
        self._memory: ServerMemory | None = None
        plan = LaunchPlan(self._model_path, device, dtype, seed, settings)
        if ranks.rank in self.nodes.first_ranks:
            plan = self._prepare(plan, folder)
        if not settings.urls:
            start_timeout_s = settings.startup_timeout_s
            self._supervised, self._node_servers = start_everywhere(
                plan, self.nodes, ranks, folder, _LOG.warning, start_timeout_s
            )
        if self._driver.is_driver:
            self.fleet = Fleet(self._supervised, settings, self._driver.ask_for_resync)
            self._memory = ServerMemory(self.fleet, plan.is_colocated)
        make_weights = weights or self._disk_weights(folder, dtype)
        self._weights: WeightPath = make_weights(self._driver, self.fleet)

    def _prepare(self, plan: LaunchPlan, folder: Path) -> LaunchPlan:
        """Put in place what this node's servers need. Raises ValueError when weights can't go to them as asked."""
        plan = replace(
            plan, is_colocated=is_colocated(plan), loader_folder=install_receiver(folder / "loader")
        )
        if plan.settings.quantization == "fp8" and not plan.settings.urls:
            plan = replace(plan, model_path=install_quantized(self._model_path, folder / "quantized"))
        if plan.settings.weight_transport == "shards":
            check_transport(plan)
        return plan

    @property
    def num_servers(self) -> int:
        """All of them, equal on every rank."""
        return len(self._settings.urls) or self._settings.num_servers * len(self.nodes.first_ranks)

    @property
    def policy_version(self) -> int:
        """See `Engine.policy_version`."""
        return self._policy_version

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers started by this job, on rank 0. Not collective."""
        return tuple(self._supervised)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, group_size: int, stream_key: int
    ) -> list[Rollout]:
        """See `Engine.generate`, and the class for what repeats."""
        self._require_open()
        if self._policy_version == NO_WEIGHTS or self._incoming_version is not None:
            raise WeightSyncError("can't generate: no weight sync has succeeded yet, or one is open")
        check_request(prompts, params, group_size, stream_key, self._limits)
        settings = GenerationSettings(
            params,
            group_size,
            self._seed,
            stream_key,
            self._settings.deterministic,
            self._settings.allow_mixed_versions,
            self._routing,
        )
        return self._driver.run(lambda: self._generate(prompts, settings))

    def abort_all(self) -> None:
        """End the running `generate` early: every response keeps what it has, at least one token.

        Not collective: call it on rank 0, from another thread. Elsewhere, and when nothing runs, it does nothing.
        """
        generation, loop_thread = self._generation, self._driver.loop_thread
        if generation is not None and loop_thread is not None:
            loop_thread.loop.call_soon_threadsafe(generation.abort)

    def release_memory(self) -> None:
        """See `Engine.release_memory`. Servers give it up where they share GPUs with the trainer."""
        self._require_open()
        if self._incoming_version is None and self._driver.run(lambda: self._server_memory().release()):
            self._policy_version = NO_WEIGHTS

    def begin_weight_update(self, policy_version: int) -> None:
        """See `Engine.begin_weight_update`."""
        self._require_open()
        if policy_version < 0:
            raise ValueError(f"policy_version = {policy_version} must not be negative")
        if self._incoming_version is not None:
            raise WeightSyncError(f"the weight sync to version {self._incoming_version} is still open")
        self._incoming_version = policy_version
        self._policy_version = NO_WEIGHTS
        self._driver.run(lambda: self._server_memory().wake_for_weights())
        self._weights.begin(policy_version)

    def load_weights(self, bucket: WeightBucket) -> None:
        """See `Engine.load_weights`."""
        if self._incoming_version is None:
            raise WeightSyncError("weights arrived outside a sync; call begin_weight_update first")
        self._weights.load(bucket)

    def end_weight_update(self) -> None:
        """See `Engine.end_weight_update`. Returns when every server serves the new version."""
        version = self._incoming_version
        if version is None:
            raise WeightSyncError("no weight sync is open; call begin_weight_update first")
        self._incoming_version = None
        self._weights.end(version)
        self._driver.run(lambda: self._server_memory().wake())
        self._loaded_from = None
        self._adopt(version)

    def load_from_hf(self, model_path: Path, policy_version: int = 0) -> None:
        """Have the servers load an HF checkpoint from files that they can read.

        Raises:
            WeightSyncError: a server could not; when all still serve the weights from before, the engine goes on with
                those, otherwise it has none.
        """
        self._require_open()
        path, before = Path(model_path), self._policy_version
        self._policy_version = NO_WEIGHTS
        self._driver.run(lambda: self._server_memory().wake())
        try:
            self._driver.run(lambda: update_all_from_disk(self._open_fleet(), path, policy_version))
        except WeightSyncError:
            if before != NO_WEIGHTS and set(
                self._driver.run(lambda: self._open_fleet().weight_versions())
            ) == {before}:
                self._policy_version = before
            raise
        self._loaded_from = path
        self._adopt(policy_version)

    def weight_checksums(self) -> dict[str, str]:
        """See `Engine.weight_checksums`."""
        self._require_open()
        return self._weights.checksums()

    def close(self) -> None:
        """See `Engine.close`. Not collective."""
        if self._is_closed:
            return
        self._is_closed = True
        self._policy_version = NO_WEIGHTS
        if self.fleet is not None and self._driver.loop_thread is not None:
            self._driver.loop_thread.submit(self.fleet.aclose()).result(_CLOSE_S)
        self._driver.close()
        for server in self._supervised:
            server.ask_to_close()
        for server in self._supervised:
            server.close()
        if self._node_servers is not None:
            self._node_servers.close()
        self._weights.close()

    async def _generate(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[Rollout]:
        fleet = self._open_fleet()
        self._num_calls += 1
        generation = self._generation = Generation(fleet, settings, self._num_calls)
        try:
            return await fleet.guarded(generation.run(prompts))
        finally:
            self._generation = None
            self.stats.num_recoveries = fleet.num_recoveries
            self.stats.num_replayed += generation.num_replayed
            self.stats.num_resampled_groups += generation.num_resampled_groups

    def _resync(self, server: int) -> None:
        path = self._loaded_from
        if path is None:
            self._weights.resync(server)
        else:
            self._driver.run(
                lambda: update_from_disk(self._open_fleet(), server, path, self._open_fleet().policy_version)
            )

    def _adopt(self, policy_version: int) -> None:
        """All servers are proven to serve it: so does the engine."""
        self._driver.run(lambda: self._check_versions(policy_version))
        self._policy_version = policy_version

    async def _check_versions(self, policy_version: int) -> None:
        """A server that died just after its update came back without it: that one is given it again."""
        fleet = self._open_fleet()
        fleet.policy_version = policy_version
        for _ in range(MAX_TRIES):
            served = await fleet.weight_versions()
            lacking = [server for server, version in enumerate(served) if version != policy_version]
            if not lacking:
                return
            for server in lacking:
                with contextlib.suppress(ServerUnreachableError):
                    await self._driver.ask_for_resync(server)
        raise WeightSyncError(f"servers keep losing policy version {policy_version} just after its sync")

    def _disk_weights(self, folder: Path, dtype: str) -> WeightPathFactory:
        return partial(
            DiskWeights,
            model_path=self._model_path,
            folder=folder,
            tensors=hf_tensors(read_shape(self._model_path)),
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
        )

    def _open_fleet(self) -> Fleet:
        assert self.fleet is not None, "coroutines run on the driver"
        return self.fleet

    def _server_memory(self) -> ServerMemory:
        assert self._memory is not None, "coroutines run on the driver"
        return self._memory

    def _require_open(self) -> None:
        if self._is_closed:
            raise WeightSyncError("the engine is closed")
