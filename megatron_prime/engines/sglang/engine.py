"""The rollout engine of SGLang servers: the production implementation of `rollout.engine.Engine`.

calling thread, all ranks  stream, weight updates --> Driver: meet, wait, share the result
driver's loop (rank 0)     Generation --> Fleet / Balancer --> SGLangClient --HTTP--> servers
supervisor threads         SupervisedServer --> guardian process --> server
"""

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from megatron_prime.config.server_keys import attached_keys
from megatron_prime.config.tables.rollout import SGLANG_RESERVED_POSITIONS, SGLangConfig
from megatron_prime.engines.dialogue import DialogueSettings
from megatron_prime.engines.requests import ModelLimits, check_sampling
from megatron_prime.engines.sglang.access import shared_secret
from megatron_prime.engines.sglang.client import ServerUnreachableError
from megatron_prime.engines.sglang.disk_loading import MAX_UPDATES, load_everywhere, reload
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.generation import Generation, GenerationSettings
from megatron_prime.engines.sglang.group_stream import SGLangGroupStream
from megatron_prime.engines.sglang.launch import (
    LaunchPlan,
    check_experts,
    check_quantization,
    check_transport,
    install_quantized,
    install_receiver,
    served_folder,
    with_cache_size,
    with_transport,
)
from megatron_prime.engines.sglang.memory import ServerMemory, is_colocated
from megatron_prime.engines.sglang.nodes import Nodes, NodeServers, Server, start_everywhere
from megatron_prime.engines.sglang.resources import gather_resources
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.engines.sglang.sampling import check_stop_tokens
from megatron_prime.hf.rope import served_rope_fault
from megatron_prime.hf.shape import read_shape
from megatron_prime.rollout.engine import NO_WEIGHTS, CheckpointEngine, EngineError, WeightSyncError
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_sync import WeightSync
from megatron_prime.types import SamplingParams

_LOG = logging.getLogger(__name__)
_CLOSE_S = 30.0


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made, on rank 0."""

    num_recoveries: int = 0
    """Servers brought back."""
    num_replayed: int = 0
    """Responses submitted again because a server failed."""
    num_resampled_groups: int = 0
    """Groups sampled again because their policy versions differed."""


class SGLangEngine(CheckpointEngine):
    """See `rollout.engine.Engine`; every method is collective unless it says otherwise.

    Rank 0 starts the servers on its node, or each node's first rank those there, or they are attached to by URL; rank 0
    talks to them for all ranks.

    In deviation from the interface, equal stream keys repeat a response only with rollout.sglang.deterministic:
    otherwise SGLang draws from one random stream per server. The model's end-of-sequence tokens end a response, too.
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
        gpu_bytes: int = 0,
        check_placement: Callable[[bool], str | None] = lambda _: None,
        continues_responses: bool = False,
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
            gpu_bytes: memory of a GPU; with it, servers on training ranks' GPUs get KV caches of a fixed size.
            check_placement: returns why the run can't use servers that share GPUs with the trainer (or that don't).
            continues_responses: responses in work continue with the weights of a sync; otherwise it waits for them.

        Raises:
            ValueError: no config.json in model_path, no engine environment, no usable API key, or settings that SGLang
                can't serve.
        """
        self.ranks = ranks or Ranks()
        self._model_path = Path(model_path)
        self._seed = seed
        self._continues_responses = continues_responses
        resources = gather_resources(self.ranks)
        self.first_node_gpus = resources[0].gpus
        """Names of the GPUs of rank 0's node, those of training ranks first; empty if they are just numbered."""
        own, path = resources[self.ranks.rank], self._model_path
        plan = LaunchPlan(path, device, dtype, seed, settings, node_gpus=own.gpus, cores=own.cores)
        if device == "cuda" and not settings.urls and not settings.gpu_ids:
            for node in resources if settings.nodes == "all" else resources[:1]:  # Every rank raises.
                node.require(plan.num_gpus)
        plan = self._placed(plan, gpu_bytes, check_placement)
        self.settings = plan.settings
        """The section rollout.sglang, with the weight transport that follows from the placement of the servers."""
        self._limits = ModelLimits.of(self._model_path, SGLANG_RESERVED_POSITIONS)
        self._routing = RoutingReader.of(self._model_path) if settings.routing_replay else None
        _check(plan)
        self._policy_version = NO_WEIGHTS
        self._incoming_version: int | None = None
        self._sync: WeightSync | None = None
        self._restore: Callable[[int], None] | None = None
        """Gives a restarted server, by index, the current weights; None before there are any."""
        self._num_streams = 0
        self._name = f"prime-{secrets.token_hex(4)}"  # Servers may have other clients.
        self.stats = EngineStats()
        self.driver = Driver(self.ranks, self._resync)
        self.folder = run_dir / "sglang"
        self.servers: list[Server] = []
        """The servers started by this job, on rank 0; empty elsewhere."""
        self._node_servers: NodeServers | None = None
        self.nodes = Nodes((0,), ("127.0.0.1",))
        """The nodes with servers, equal on every rank."""
        if settings.nodes == "all" and not settings.urls:
            self.nodes = Nodes.find(self.ranks, int(os.environ.get("LOCAL_RANK", "0")))
        self._is_closed = False
        self._may_start = threading.Event()
        """Cleared while the trainer uses the servers' memory, in which a server that dies must not start again."""
        self._may_start.set()
        self.fleet: Fleet | None = None
        """The servers, on rank 0; None elsewhere."""
        self._memory: ServerMemory | None = None
        self.secret = shared_secret(self.ranks)
        """The secret of this run's servers and stores, equal on every rank."""
        self._start(replace(plan, secret=self.secret))

    def _start(self, plan: LaunchPlan) -> None:
        """Start this rank's servers, if it has any, or attach to those of the configuration."""
        settings = plan.settings
        self.is_colocated = plan.is_colocated
        """Whether the servers give up the memory of their weights while the trainer uses it."""
        # Only the ranks that start servers write their files: several ranks of a node would write the same ones.
        if self.ranks.rank in self.nodes.first_ranks:
            plan = self._prepare(plan)
        if not settings.urls:
            self.servers, self._node_servers = start_everywhere(
                plan,
                self.nodes,
                self.ranks,
                self.folder,
                _LOG.warning,
                settings.startup_timeout_s,
                self._may_start,
            )
        if self.driver.is_driver:
            self.fleet = Fleet(self.servers, settings, self.driver.ask_for_resync, self.secret)
            self._memory = ServerMemory(self.fleet, plan.is_colocated)

    def _placed(
        self, plan: LaunchPlan, gpu_bytes: int, check_placement: Callable[[bool], str | None]
    ) -> LaunchPlan:
        """Return the plan with what follows from the servers' GPUs, equal on every rank."""
        colocated = self.ranks.from_first(is_colocated(plan))
        if (fault := check_placement(colocated)) is not None:
            raise ValueError(fault)
        settings = with_transport(plan.settings, plan.device, colocated)
        if colocated and gpu_bytes and not settings.urls:
            settings = with_cache_size(settings, read_shape(plan.model_path), gpu_bytes)
        return replace(plan, settings=settings, is_colocated=colocated)

    def _prepare(self, plan: LaunchPlan) -> LaunchPlan:
        """Write the files that this node's servers need."""
        plan = replace(plan, loader_folder=install_receiver(self.folder / "loader"))
        if plan.settings.quantization == "fp8" and not plan.settings.urls:
            plan = replace(plan, model_path=install_quantized(self._model_path, self.folder / "quantized"))
        elif plan.settings.weight_transport == "disk" and not plan.settings.urls:
            plan = replace(plan, model_path=served_folder(self._model_path, self.folder / "model"))
        return plan

    @property
    def num_servers(self) -> int:
        """Number of servers, equal on every rank."""
        return len(self.settings.urls) or self.settings.num_servers * len(self.nodes.first_ranks)

    @property
    def server_hosts(self) -> list[str]:
        """Host names or addresses of all servers."""
        return [urlsplit(url).hostname or "" for url in self.settings.urls] or [*self.nodes.addresses]

    @property
    def policy_version(self) -> int:
        """See `Engine.policy_version`."""
        return self._policy_version

    @contextlib.contextmanager
    def stream(
        self,
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> Iterator[SGLangGroupStream]:
        """See `Engine.stream`, and the class for the meaning of stream_key."""
        self._require_open()
        if self._policy_version == NO_WEIGHTS or self._incoming_version is not None:
            raise WeightSyncError("can't generate: no weight sync has succeeded yet, or one is open")
        check_sampling(params, group_size, stream_key)
        check_stop_tokens(params, self._limits)
        self._num_streams += 1
        settings = GenerationSettings(
            DialogueSettings(params, self._limits, environments),
            group_size,
            self._seed,
            stream_key,
            self.settings.deterministic,
            self.settings.allow_mixed_versions or self._continues_responses,
            self._routing,
            self._num_streams,
        )
        name = f"{self._name}-{self._num_streams}"
        stream = SGLangGroupStream(
            self.driver, lambda: Generation(self.open_fleet(), settings, name), settings
        )
        try:
            yield stream
        except BaseException:
            stream.give_up()
            raise
        self._note(stream.close())

    @contextlib.contextmanager
    def while_training(self) -> Iterator[None]:
        """See `Engine.while_training`."""
        if self.fleet is not None and self.driver.loop_thread is not None:
            self.driver.loop_thread.submit(self.fleet.keep_weights()).result()
        try:
            yield
        finally:
            if self.fleet is not None:
                self.fleet.can_resync = True

    def release_memory(self) -> None:
        """See `Engine.release_memory`. Servers free theirs if they share GPUs with the trainer."""
        self._require_open()
        if self._incoming_version is None and self.driver.run(lambda: self._server_memory().release()):
            self._policy_version = NO_WEIGHTS
            self._may_start.clear()

    @contextlib.contextmanager
    def weight_update(self, policy_version: int, sync: WeightSync) -> Iterator[None]:
        """Enclose the delivery of new weights to the servers; for the implementations of `WeightSync`.

        There are no valid weights inside. At the end every server must hold the version and say so, or be restarted and
        given it by `sync.resync`; the engine then serves it. After an exception the engine has no weights.

        Args:
            policy_version: the new version, >= 0.
            sync: gives the weights to servers that restart later on; `close` closes it.

        Raises:
            ValueError: the version is negative.
            WeightSyncError: another update is open, or a server keeps losing the version.
        """
        self._require_open()
        if policy_version < 0:
            raise ValueError(f"policy_version = {policy_version} must not be negative")
        if self._incoming_version is not None:
            raise WeightSyncError(f"the weight sync to version {self._incoming_version} is still open")
        self._sync = sync
        self._policy_version = NO_WEIGHTS
        with self._paused():
            try:
                self._incoming_version = policy_version
                self._may_start.set()
                # The KV cache comes back later: until then its memory is free for the buffers of the transfer.
                self.driver.run(lambda: self._server_memory().wake_for_weights())
                yield
            finally:
                self._incoming_version = None
            self.driver.run(lambda: self._server_memory().wake())
            self._adopt(policy_version, sync.resync)

    def load_from_hf(self, model_path: Path, policy_version: int = 0) -> None:
        """See `CheckpointEngine.load_from_hf`. The servers must be able to read the files.

        Raises:
            WeightSyncError: a server could not load them. The engine continues with its old weights if all servers
                still serve those; otherwise it has none.
        """
        self._require_open()
        path, before = Path(model_path), self._policy_version
        self._policy_version = NO_WEIGHTS
        self._may_start.set()
        self.driver.run(lambda: self._server_memory().wake())
        if self.driver.is_driver and path.is_dir():
            path = served_folder(path, self.folder / "loaded")
        try:
            self.driver.run(lambda: load_everywhere(self.open_fleet(), path, policy_version))
        except WeightSyncError:
            # A checkpoint that is refused, such as a path that does not exist, leaves the old weights in place.
            if before != NO_WEIGHTS and set(self.driver.run(lambda: self.open_fleet().weight_versions())) == {
                before
            }:
                self._policy_version = before
            raise
        self._adopt(
            policy_version, lambda server: self.driver.run(lambda: reload(self.open_fleet(), server, path))
        )

    def close(self) -> None:
        """See `Engine.close`; closes the last weight sync as well. Not collective."""
        if self._is_closed:
            return
        self._is_closed = True
        self._policy_version = NO_WEIGHTS
        if self.fleet is not None and self.driver.loop_thread is not None:
            self.driver.loop_thread.submit(self.fleet.aclose()).result(_CLOSE_S)
        self.driver.close()
        # Ask all before waiting for one: each may take seconds to end.
        for server in self.servers:
            server.ask_to_close()
        for server in self.servers:
            server.close()
        if self._node_servers is not None:
            self._node_servers.close()
        if self._sync is not None:
            # After the servers: CUDA memory must not be freed while another process has it mapped.
            self._sync.close()

    def open_fleet(self) -> Fleet:
        """Return the fleet; for coroutines, which run on the driver alone."""
        assert self.fleet is not None, "coroutines run on the driver"
        return self.fleet

    def _note(self, generation: Generation | None) -> None:
        """Add up what has happened in a stream; there is one on the driver alone."""
        if generation is not None:
            self.stats.num_recoveries = self.open_fleet().num_recoveries
            self.stats.num_replayed += generation.num_replayed
            self.stats.num_resampled_groups += generation.num_resampled_groups

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Let no group of responses begin inside; those in work end first, unless they continue with other weights."""
        self.driver.run(lambda: self.open_fleet().pause(until_idle=not self._continues_responses))
        try:
            yield
        except BaseException:
            # Not collective, as other ranks may be without the error. A closed engine has nothing to go on with.
            if self.driver.loop_thread is not None:
                with contextlib.suppress(EngineError):
                    self.driver.loop_thread.submit(self.open_fleet().go_on())
            raise
        self.driver.run(lambda: self.open_fleet().go_on())

    def _resync(self, server: int) -> None:
        if self._restore is None:
            raise WeightSyncError("there are no weights to give to a restarted server")
        self._restore(server)

    def _adopt(self, policy_version: int, restore: Callable[[int], None]) -> None:
        """Serve a version that has reached the servers, once each of them says that it has it."""
        # Before the check, which may have to restore servers.
        self._restore = restore
        self.driver.run(lambda: self._check_versions(policy_version))
        self._policy_version = policy_version

    async def _check_versions(self, policy_version: int) -> None:
        """Resync servers that restarted between their update and now, and so came back without the version."""
        fleet = self.open_fleet()
        fleet.policy_version = policy_version
        for _ in range(MAX_UPDATES):
            served = await fleet.weight_versions()
            lacking = [server for server, version in enumerate(served) if version != policy_version]
            if not lacking:
                await fleet.let_in()
                return
            for server in lacking:
                with contextlib.suppress(ServerUnreachableError):
                    await self.driver.ask_for_resync(server)
        raise WeightSyncError(f"servers keep losing policy version {policy_version} just after its sync")

    def _server_memory(self) -> ServerMemory:
        assert self._memory is not None, "coroutines run on the driver"
        return self._memory

    def _require_open(self) -> None:
        if self._is_closed:
            raise WeightSyncError("the engine is closed")


def _check(plan: LaunchPlan) -> None:
    """Raise ValueError if the servers cannot be started, reached or given weights as configured."""
    settings = plan.settings
    attached_keys(settings)
    if (fault := served_rope_fault(read_shape(plan.model_path).rope_scaling)) is not None:
        raise ValueError(f"{plan.model_path}: {fault}")
    if settings.weight_transport == "shards":
        check_transport(plan)
    if settings.urls:
        return
    if not settings.python.is_file():
        raise ValueError(
            f"rollout.sglang.python = {settings.python} does not exist: build the engine environment with "
            "`make sglang`, or name its interpreter"
        )
    check_experts(settings, plan.device)
    check_quantization(settings, plan.device)
