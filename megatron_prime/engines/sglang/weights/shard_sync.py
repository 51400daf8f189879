"""The weight sync from the training ranks' memory to SGLang servers: no files, no gather, proven by checksums.

One attempt, for the servers that still lack the version:

    driver      pause (retract), begin, POST the instructions; wait for every receiver's hello; say go
    all ranks   send their slices; the receivers write, read back, compare
    driver      compare the receivers' sums with the senders'; accept the weights' name; let the server sample

A server that fails in any step is given everything again. The weights' name comes with them and is accepted last, so
that neither a half-written server nor one that has restarted passes for one that serves the version; see `versions`.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.engines.sglang.access import store_key
from megatron_prime.engines.sglang.client import ServerUnreachableError
from megatron_prime.engines.sglang.disk_loading import MAX_UPDATES
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.loader.signing import FORGED, ForgedValueError, SignedStore
from megatron_prime.engines.sglang.weights.coordinator import Coordinator, Fault, PreparedAttempt
from megatron_prime.engines.sglang.weights.full_check import differing, expected_checksums
from megatron_prime.engines.sglang.weights.sender import SendReport
from megatron_prime.engines.sglang.weights.source import WeightSource
from megatron_prime.parallel.rendezvous import address_towards, master_host, meeting_address
from megatron_prime.rollout.engine import WeightSyncError

_LOG = logging.getLogger(__name__)
_STEP_SHARE = 0.8
"""Deadline of each step inside a control call, as a share of the call's: the inner error must come first."""


@dataclass(slots=True)
class SyncStats:
    """Counters since the sync was made."""

    num_attempts: int = 0
    num_repeats: int = 0
    """Attempts that followed a failed one."""
    num_bytes_sent: int = 0
    """Bytes sent by this rank."""
    last_fault: str = ""
    """Why servers had to be given their weights again, the last time."""


class ShardSync:
    """Sends slices from the training ranks to the servers' ranks. Implements `rollout.weight_sync.WeightSync`.

    Servers must run `launch.LOADER` as a custom weight loader; those that the engine starts itself do.
    """

    def __init__(
        self, engine: SGLangEngine, source: WeightSource, *, timeout_s: float, full_check_every: int = 0
    ) -> None:
        """Make the sync; the driver opens the store that receivers connect to. Collective.

        Args:
            engine: the servers, numbered like the engines of the source's plan.
            source: the weights to send.
            timeout_s: deadline of a control call.
            full_check_every: number of syncs after which a `full_check` follows each time; 0 for never.
        """
        self._engine = engine
        self.source = source
        self._full_check_every = full_check_every
        self._num_syncs = 0
        self._coordinator: Coordinator | None = None
        own = address_towards(master_host())
        addresses = engine.ranks.gather_all([own])
        if engine.fleet is not None:
            store = SignedStore.host(
                meeting_address(own, [*addresses, *engine.server_hosts]),
                timeout_s * _STEP_SHARE,
                store_key(engine.secret),
            )
            self._coordinator = Coordinator(
                engine.fleet,
                source.plan,
                engine.ranks.world_size,
                source.sender.backend,
                timeout_s * _STEP_SHARE,
                store,
            )
        self.stats = SyncStats()

    def push(self, policy_version: int) -> None:
        """See `WeightSync.push`."""
        with self._engine.weight_update(policy_version, self):
            self._deliver(policy_version)

    def resync(self, server: int) -> None:
        """See `WeightSync.resync`. Sends the parameters as they are now.

        These are the weights that the other servers have: the policy does not change while responses are sampled, and
        only then do servers come back.
        """
        version = self._engine.driver.run(self._served_version)
        faults = self._attempt([server], version)
        if faults:
            # Any fault allows another try: the fleet limits their number.
            raise ServerUnreachableError(f"resync to version {version} failed: {_listed(faults)}")

    def full_check(self) -> dict[int, str]:
        """Compare every parameter of every server, by SGLang's own `/weights_checker`, with the policy's.

        Collective; gathers all weights on rank 0. The servers must be on CPUs: SGLang hashes differently on GPUs.
        Returns the differences by server, equal on every rank; empty when there are none.
        """
        whole, plan = self.source.gather(), self.source.plan.reshard

        async def compare() -> dict[int, str]:
            expected = await asyncio.to_thread(expected_checksums, whole, plan.shape, plan.engines)
            clients = await self._engine.open_fleet().clients()
            answers = [await client.weight_checksums() for client in clients]
            return {
                server: f"TP rank {tp_rank} holds other weights than were sent: {', '.join(names[:8])}"
                for server, answer in enumerate(answers)
                for tp_rank, (wanted, found) in enumerate(zip(expected, answer, strict=True))
                if (names := differing(wanted, found))
            }

        return self._engine.driver.run(compare)

    def close(self) -> None:
        """See `WeightSync.close`."""
        self.source.sender.drop_groups()

    def _deliver(self, version: int) -> None:
        waiting: Sequence[int] = range(self.source.plan.reshard.engines.num_engines)
        faults: dict[int, Fault] = {}
        self._num_syncs += 1
        is_checked = bool(self._full_check_every) and self._num_syncs % self._full_check_every == 0
        for num_failed in range(MAX_UPDATES):
            self.stats.num_repeats += bool(num_failed)
            faults = self._attempt(waiting, version)
            # A difference counts as a fault of the server, which then gets everything again.
            if not faults and is_checked:
                faults = {server: Fault(text) for server, text in self.full_check().items()}
            if not faults:
                return
            waiting = sorted(faults)
        raise WeightSyncError(
            f"version {version} did not reach every server in {MAX_UPDATES} tries: {_listed(faults)}. Servers "
            "with half-written weights stay paused until a sync succeeds; see docs/placement.md"
        )

    def _attempt(self, servers: Sequence[int], version: int) -> dict[int, Fault]:
        """Make one attempt for some servers; return the faults by server, equal on every rank."""
        driver, ranks, sender = self._engine.driver, self._engine.ranks, self.source.sender
        self.stats.num_attempts += 1
        groups = sender.groups
        prepared: PreparedAttempt = driver.run(lambda: self._lead().prepare(servers, version, groups))
        reports: list[SendReport] = []
        if prepared.rendezvous is not None:
            reports = ranks.gather_all([sender.send(prepared.rendezvous)])
            self.stats.num_bytes_sent += reports[ranks.rank].num_bytes
            if any(report.faults for report in reports):
                # A rank that failed sends nothing more. Closing all connections makes the receivers that wait for it
                # give up at once instead of at the deadline.
                sender.drop_groups()
        faults = driver.run(lambda: self._lead().finish(prepared, reports))
        if faults:
            self.stats.last_fault = _listed(faults)
            # Whoever writes to the store would not stop at another attempt.
            if FORGED in self.stats.last_fault:
                raise ForgedValueError(self.stats.last_fault)
            if driver.is_driver:
                _LOG.warning(
                    "weight sync to version %d failed and is repeated: %s", version, self.stats.last_fault
                )
        return faults

    async def _served_version(self) -> int:
        return self._engine.open_fleet().policy_version

    def _lead(self) -> Coordinator:
        assert self._coordinator is not None, "coroutines run on the driver"
        return self._coordinator


def _listed(faults: dict[int, Fault]) -> str:
    return "; ".join(f"server {server}: {fault.message}" for server, fault in sorted(faults.items()))
