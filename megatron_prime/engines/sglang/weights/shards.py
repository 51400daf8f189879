"""Weights from the training ranks' memory into SGLang servers: no file, no gather, proven by checksums each time.

One attempt, for the servers that still lack the version:

    driver      pause (retract), begin, POST the manifests; wait for every receiver's hello; say go
    all ranks   send their slices; the receivers write, read back, compare
    driver      compare the receivers' sums with the senders'; name the version; let it sample

A server that fails in any of these is given everything again. The version is named last, so that a half-written server
never passes for one that serves it, and it stays paused.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_prime.engines.sglang.client import ServerUnreachableError
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.weights.attempt import Conductor, Fault, Opened
from megatron_prime.engines.sglang.weights.disk import MAX_TRIES
from megatron_prime.engines.sglang.weights.full_check import differing, expected_checksums
from megatron_prime.engines.sglang.weights.manifest import Manifests
from megatron_prime.engines.sglang.weights.send import Sender, SendReport, ShardSender
from megatron_prime.engines.sglang.weights.send_ipc import IpcSender
from megatron_prime.hf.mapping import ModelShape
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.weight_sync import WeightSync, plan_for, to_rank_0
from megatron_prime.rollout.engine import Engine, WeightSyncError
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import tensor_checksum
from megatron_prime.types import WeightBlock, WeightBucket

_LOG = logging.getLogger(__name__)
_STEP_SHARE = 0.8
"""Of the deadline of a control call, for each step inside of it."""


@dataclass(slots=True)
class SyncStats:
    """Counts since the engine was made."""

    num_attempts: int = 0
    num_repeats: int = 0
    """Attempts that a failed one made necessary."""
    num_bytes_sent: int = 0
    """By this rank."""
    last_fault: str = ""
    """Of a server that had to be given its weights again."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from: the policy's parameters on every training rank."""

    sender: Sender
    manifests: Manifests
    gather: Callable[[], dict[str, torch.Tensor]]
    """Whole tensors by HF name in the dtype that is sent, on rank 0 alone. Collective, and dear."""


class ShardWeights:
    """Shard-to-shard weight syncs; see the module, and `rollout.sglang_weights.WeightPath`.

    Servers must run `sglang_launch.LOADER` as a custom weight loader; those that the engine starts itself do.
    """

    def __init__(
        self,
        driver: Driver,
        fleet: Fleet | None,
        *,
        ranks: Ranks,
        timeout_s: float,
        full_check_every: int = 0,
    ) -> None:
        """Keep the parts; `bind` must follow before the first sync.

        Args:
            driver: of the engine.
            fleet: of the engine; None where this is not the driver.
            ranks: the training ranks.
            timeout_s: deadline of a control call.
            full_check_every: every so many syncs `full_check` follows; 0 for never.
        """
        self._full_check_every = full_check_every
        self._num_syncs = 0
        self._driver = driver
        self._fleet = fleet
        self.ranks = ranks
        self._timeout_s = timeout_s * _STEP_SHARE
        self._source: Source | None = None
        self._conductor: Conductor | None = None
        self.stats = SyncStats()

    def bind(self, source: Source) -> None:
        """Name the parameters to send. Once, when the policy has been built."""
        self._source = source
        if self._fleet is not None:
            self._conductor = Conductor(
                self._fleet, source.manifests, self.ranks.world_size, source.sender.backend, self._timeout_s
            )

    def begin(self, policy_version: int) -> None:
        """See `WeightPath.begin`."""
        self._bound()

    def load(self, bucket: WeightBucket) -> None:
        """Never called by `WeightSync`: the slices do not pass through the engine. Raises WeightSyncError."""
        raise WeightSyncError(f"{len(bucket.blocks)} blocks were given to a path that sends shards by itself")

    def end(self, policy_version: int) -> None:
        """See `WeightPath.end`. Here everything happens."""
        waiting: Sequence[int] = range(self._bound().manifests.plan.engines.num_engines)
        faults: dict[int, Fault] = {}
        self._num_syncs += 1
        is_checked = bool(self._full_check_every) and self._num_syncs % self._full_check_every == 0
        for num_failed in range(MAX_TRIES):
            self.stats.num_repeats += bool(num_failed)
            faults = self._attempt(waiting, policy_version)
            if not faults and is_checked:
                faults = {server: Fault(text) for server, text in self.full_check().items()}
            if not faults:
                return
            waiting = sorted(faults)
        raise WeightSyncError(
            f"version {policy_version} did not reach every server in {MAX_TRIES} tries: {_listed(faults)}. Servers "
            "with half-written weights stay paused until a sync succeeds; see docs/placement.md"
        )

    def resync(self, server: int) -> None:
        """See `WeightPath.resync`. Sends the parameters as they are now: those of the last sync.

        They are, since the policy learns only while nothing is sampled.
        """
        version = self._driver.run(self._served_version)
        faults = self._attempt([server], version)
        if faults:
            # Whatever it was: the fleet tries again, a bounded number of times.
            raise ServerUnreachableError(f"resync to version {version} failed: {_listed(faults)}")

    def checksums(self) -> dict[str, str]:
        """See `WeightPath.checksums`. Of what the training ranks hold, gathered."""
        whole = self._bound().gather()
        mine = [(name, tensor_checksum(tensor)) for name, tensor in whole.items()]
        return dict(self.ranks.gather_all(mine))

    def full_check(self) -> dict[int, str]:
        """Compare every parameter of every server, by SGLang's own `/weights_checker`, with what it should hold.

        Collective; gathers all weights on rank 0. Servers must be on CPUs: on GPUs SGLang hashes otherwise. Returns
        what is wrong by server, equal on every rank; nothing when all is well.
        """
        whole, plan = self._bound().gather(), self._bound().manifests.plan

        async def compare() -> dict[int, str]:
            assert self._fleet is not None
            expected = await asyncio.to_thread(expected_checksums, whole, plan.shape, plan.engines)
            answers = [await client.weight_checksums() for client in await self._fleet.clients()]
            return {
                server: f"TP rank {tp_rank} holds other weights than were sent: {', '.join(names[:8])}"
                for server, answered in enumerate(answers)
                for tp_rank, (wanted, got) in enumerate(zip(expected, answered, strict=True))
                if (names := differing(wanted, got))
            }

        return self._driver.run(compare)

    def close(self) -> None:
        """See `WeightPath.close`."""
        if self._source is not None:
            self._source.sender.drop_groups()

    def _attempt(self, servers: Sequence[int], version: int) -> dict[int, Fault]:
        """One attempt for some servers; returns what failed, equal on every rank."""
        sender = self._bound().sender
        self.stats.num_attempts += 1
        kept_groups = sender.groups
        opened: Opened = self._driver.run(lambda: self._lead().open(servers, version, kept_groups))
        reports: list[SendReport] = []
        if opened.meeting is not None:
            reports = self.ranks.gather_all([sender.send(opened.meeting)])
            self.stats.num_bytes_sent += reports[self.ranks.rank].num_bytes
            if any(report.faults for report in reports):
                # Closes connections: receivers that wait for what will not come give up.
                sender.drop_groups()
        faults = self._driver.run(lambda: self._lead().close(opened, reports, version))
        if faults:
            self.stats.last_fault = _listed(faults)
            if self._driver.is_driver:
                _LOG.warning("weight sync to version %d, to be repeated: %s", version, self.stats.last_fault)
        return faults

    async def _served_version(self) -> int:
        assert self._fleet is not None, "coroutines run on the driver"
        return self._fleet.policy_version

    def _lead(self) -> Conductor:
        assert self._conductor is not None, "coroutines run on the driver"
        return self._conductor

    def _bound(self) -> Source:
        if self._source is None:
            raise WeightSyncError("the servers' weights have no source yet: build the weight sync first")
        return self._source


def shard_weight_sync(
    engine: Engine,
    weights: ShardWeights,
    shape: ModelShape,
    parameters: Mapping[str, torch.Tensor],
    topology: Topology,
    dtype: torch.dtype,
    engines: EngineLayout,
    *,
    max_bucket_bytes: int = 256 << 20,
    is_quantized: bool = False,
) -> WeightSync:
    """The sync of an engine's `weights`: from each training rank's memory to that of engines in other processes.

    `engines` are in the order of the engine's servers: on ranks beyond the training job's, to which slices go by gloo
    or NCCL, or all on training ranks of the servers' node, which hand them over in shared memory. With `is_quantized`
    linear layers travel in block FP8. Raises ValueError when the shape cannot be divided so.
    """
    is_beside = [rank < topology.world_size for ranks in engines.ranks for rank in ranks]
    assert all(is_beside) or not any(is_beside), "one transport serves all engines"
    plan = plan_for(shape, topology, engines, dtype)
    name = str(dtype).removeprefix("torch.")
    manifests = Manifests(plan, max_bucket_bytes, name, from_host=is_beside[0], is_quantized=is_quantized)
    make_sender = IpcSender if is_beside[0] else ShardSender
    sender: Sender = make_sender(manifests, parameters, topology, dtype)

    def gather() -> dict[str, torch.Tensor]:
        whole: dict[str, torch.Tensor] = {}
        for blocks in to_rank_0(shape, parameters, topology, dtype).deliver():
            whole |= {name: tensor.cpu() for name, tensor in joined_blocks(blocks).items()}
        return whole

    weights.bind(Source(sender, manifests, gather))
    return WeightSync(engine, None)


def joined_blocks(blocks: Iterable[WeightBlock]) -> dict[str, torch.Tensor]:
    """Whole tensors by HF name, of blocks that make them up."""
    by_name: dict[str, list[WeightBlock]] = {}
    for block in blocks:
        by_name.setdefault(block.hf_name, []).append(block)
    return {
        name: torch.cat([block.tensor for block in sorted(parts, key=lambda p: p.start)], dim=parts[0].dim)
        for name, parts in by_name.items()
    }


def _listed(faults: dict[int, Fault]) -> str:
    return "; ".join(f"server {server}: {fault.message}" for server, fault in sorted(faults.items()))
