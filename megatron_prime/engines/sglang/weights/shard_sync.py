"""The weight sync from the training ranks' memory to SGLang servers: no files, no gather, proven by checksums.

One attempt, for the servers that still lack the version:

    driver      pause (retract), begin, POST the instructions; wait for every receiver's hello; say go
    all ranks   send their slices; the receivers write, read back, compare
    driver      compare the receivers' sums with the senders'; accept the weights' name; let the server sample

A server that still holds the weights of the push before is sent only the elements that have changed since. The proof is
the same: the checksums are of whole slices. A server that fails in any step is given everything again. The weights'
name comes with them and is accepted last, so that neither a half-written server nor one that has restarted passes for
one that serves the version; see `versions`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
_MAX_REFUTED = 3
"""Failed proofs in a row after which a server is sent no changes any more."""
_STEP_SHARE = 0.8
"""Deadline of each step inside a control call, as a share of the call's: the inner error must come first."""


@dataclass(slots=True)
class _Tally:
    """The sums over all ranks of one push."""

    num_bytes: int = 0
    num_compared: int = 0
    num_changed: int = 0

    def add(self, reports: Sequence[SendReport]) -> None:
        self.num_bytes += sum(report.num_bytes for report in reports)
        self.num_compared += sum(report.num_compared for report in reports)
        self.num_changed += sum(report.num_changed for report in reports)

    def measurements(self) -> dict[str, float]:
        found = {"gib_sent": self.num_bytes / (1 << 30)}
        if self.num_compared:
            found["changed_fraction"] = self.num_changed / self.num_compared
        return found


@dataclass(slots=True)
class SyncStats:
    """Counters since the sync was made."""

    num_attempts: int = 0
    num_repeats: int = 0
    """Attempts that followed a failed one."""
    num_bytes_sent: int = 0
    """Bytes sent by this rank."""
    num_patched: int = 0
    """Servers, added up over attempts, that were sent changes alone."""
    num_fallbacks: int = 0
    """Servers of these that had to be given everything, because that failed."""
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
        self._num_pushes = 0
        self._refuted: Counter[int] = Counter()
        """Number of times in a row that a server held other weights after it was sent changes."""
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
        self._tally = _Tally()

    def push(self, policy_version: int) -> dict[str, float]:
        """See `WeightSync.push`."""
        before, self._tally = replace(self.stats), _Tally()
        with self._engine.weight_update(policy_version, self):
            self._deliver(policy_version)
        return self._tally.measurements() | {
            "num_patched": self.stats.num_patched - before.num_patched,
            "num_fallbacks": self.stats.num_fallbacks - before.num_fallbacks,
            "num_repeats": self.stats.num_repeats - before.num_repeats,
        }

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
        self._num_pushes += 1
        is_checked = bool(self._full_check_every) and self._num_pushes % self._full_check_every == 0
        for num_failed in range(MAX_UPDATES):
            self.stats.num_repeats += bool(num_failed)
            # What a server holds after a failed attempt is not known, so that a repetition brings everything.
            patchable = self._patchable() if not num_failed else []
            faults = self._attempt(waiting, version, patchable)
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

    def _patchable(self) -> list[int]:
        """Return the servers that may be sent the changes since the last push, equal on every rank.

        Some layers may rearrange their weights after an update, whoever wrote them. Such a server never holds what it
        was sent, and to try it again and again would cost two transfers a push.
        """
        if not self.source.sender.sends_changes:
            return []
        servers = range(self.source.plan.reshard.engines.num_engines)
        return [server for server in servers if self._refuted[server] < _MAX_REFUTED]

    def _attempt(
        self, servers: Sequence[int], version: int, patchable: Sequence[int] = ()
    ) -> dict[int, Fault]:
        """Make one attempt for some servers; return the faults by server, equal on every rank."""
        driver, ranks, sender = self._engine.driver, self._engine.ranks, self.source.sender
        self.stats.num_attempts += 1
        groups = sender.groups
        prepared: PreparedAttempt = driver.run(
            lambda: self._lead().prepare(servers, version, groups, self._num_pushes, patchable)
        )
        reports: list[SendReport] = []
        if prepared.rendezvous is not None:
            reports = ranks.gather_all([sender.send(prepared.rendezvous)])
            self.stats.num_bytes_sent += reports[ranks.rank].num_bytes
            self._tally.add(reports)
            if any(report.faults for report in reports):
                # A rank that failed sends nothing more. Closing all connections makes the receivers that wait for it
                # give up at once instead of at the deadline.
                sender.drop_groups()
        faults = driver.run(lambda: self._lead().finish(prepared, reports))
        self._judge(prepared, faults)
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

    def _judge(self, prepared: PreparedAttempt, faults: Mapping[int, Fault]) -> None:
        """Record what became of the servers that were sent changes alone."""
        rendezvous = prepared.rendezvous
        for server in {server for server, _ in rendezvous.patched} if rendezvous else ():
            fault = faults.get(server)
            self.stats.num_patched += 1
            self.stats.num_fallbacks += fault is not None
            self._refuted[server] = self._refuted[server] + 1 if fault and fault.is_damaged else 0
            if self._refuted[server] == _MAX_REFUTED and self._engine.driver.is_driver:
                _LOG.warning(
                    "SGLang server %d held other weights after the changes of %d syncs in a row: from now on it gets "
                    "all weights in every sync",
                    server,
                    _MAX_REFUTED,
                )

    async def _served_version(self) -> int:
        return self._engine.open_fleet().policy_version

    def _lead(self) -> Coordinator:
        assert self._coordinator is not None, "coroutines run on the driver"
        return self._coordinator


def _listed(faults: dict[int, Fault]) -> str:
    return "; ".join(f"server {server}: {fault.message}" for server, fault in sorted(faults.items()))
