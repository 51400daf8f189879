"""The driver's part in an attempt to give new weights to SGLang servers: control calls, and the proof at the end."""

import asyncio
import contextlib
import json
import pickle
import time
import uuid
from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.disk_loading import confirm
from megatron_prime.engines.sglang.fleet import Fleet, cancel
from megatron_prime.engines.sglang.launch import LOADER
from megatron_prime.engines.sglang.loader.signing import FORGED, SignedStore
from megatron_prime.engines.sglang.loader.wire import PROTOCOL, UNKNOWN_LAYOUT, nccl_version
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan, Target
from megatron_prime.engines.sglang.weights.sender import Rendezvous, SendReport
from megatron_prime.rollout.engine import EngineError

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason why a server did not get its weights."""

    message: str
    is_unreachable: bool = False
    """True if the server gave no answer, so that it may come back as a new process."""
    is_damaged: bool = False
    """True if the server got everything and holds other weights than were sent."""

    @classmethod
    def of(cls, error: EngineError) -> "Fault":
        """Return the fault behind the error of a call."""
        return cls(str(error), isinstance(error, ServerUnreachableError))


class _Hello(NamedTuple):
    """The answer of a receiver that can take part."""

    groups: list[str]
    """The process groups that it still has."""
    held: list[str]
    """The label of the weights that it holds, if these are proven."""


@dataclass(frozen=True, slots=True)
class PreparedAttempt:
    """The servers' answers before the transfer, shared with all ranks."""

    rendezvous: Rendezvous | None
    """None when no server takes part."""
    faults: dict[int, Fault]
    """Fault by server."""


class Coordinator:
    """Makes the control calls of weight syncs. All coroutines belong to the driver's event loop.

    An attempt is `prepare`, then the senders' transfer, then `finish`; attempts must not overlap.
    """

    def __init__(
        self,
        fleet: Fleet,
        plan: BucketedPlan,
        num_senders: int,
        backend: str,
        timeout_s: float,
        store: SignedStore,
    ) -> None:
        """Keep what the control calls need; the layout of a receiver's slices is computed when it is sent.

        Args:
            fleet: the servers, numbered like the plan's engines.
            plan: the transfers to them.
            num_senders: number of training ranks, which come first in the process group.
            backend: gloo, nccl or ipc.
            timeout_s: deadline of each step.
            store: where senders and receivers meet.
        """
        self._fleet = fleet
        self._plan = plan
        self._num_senders = num_senders
        self._backend = backend
        self._timeout_s = timeout_s
        self._store = store
        # A new name for every coordinator: receivers must not use the layout of an earlier run's plan.
        self._layout = uuid.uuid4().hex
        self._layout_sent: dict[Target, str] = {}
        """The URL at which each target was sent the layout: a restarted server has another one."""
        self._posts: dict[int, asyncio.Task[None]] = {}
        self._names: dict[int, str] = {}
        """The name of the weights that each server gets in this attempt."""

    async def prepare(
        self,
        servers: Sequence[int],
        version: int,
        kept_groups: Sequence[str],
        push: int = 0,
        patchable: Collection[int] = (),
    ) -> PreparedAttempt:
        """Pause the servers and bring their receivers to the rendezvous. The senders go there next.

        `finish` must follow in any case.

        Args:
            servers: the servers that lack the version.
            version: the version that they will serve.
            kept_groups: names of the process groups that every sender can use again.
            push: number of the push whose weights are sent; weights of equal numbers are equal.
            patchable: servers that may be sent the changes since the push before, if they say that they hold it.

        Raises:
            EngineError: a server can't be started any more.
        """
        # Late messages of an earlier attempt have another prefix, and so are never read.
        attempt = f"{version}-{uuid.uuid4().hex[:12]}"
        faults: dict[int, Fault] = {}
        try:
            await self._each(servers, lambda server: self._start(server, version, attempt), faults)
            hellos = await self._await_hellos(attempt, servers, faults)
        except BaseException:
            await self._drop_posts()
            raise
        rendezvous = self._rendezvous(attempt, hellos, faults, kept_groups)
        go: dict[str, Any] = {"group": "", "size": 0, "ranks": {}}
        if rendezvous is not None:
            rendezvous = self._with_changes(rendezvous, hellos, push, patchable)
            ranks = {str(self._index(target)): rank for target, rank in rendezvous.members}
            go = {"group": rendezvous.group, "size": rendezvous.size, "ranks": ranks}
            go |= {"label": rendezvous.label, "base": rendezvous.base}
            go["patched"] = [self._index(target) for target in rendezvous.patched]
        self._store.under(attempt).set("go", go)
        return PreparedAttempt(rendezvous, faults)

    async def finish(self, prepared: PreparedAttempt, reports: Sequence[SendReport]) -> dict[int, Fault]:
        """End an attempt: servers that are proven to hold the version sample again, the others stay paused.

        Returns all faults of the attempt by server.
        """
        faults = dict(prepared.faults)
        for report in reports:
            for server, text in report.faults.items():
                faults.setdefault(server, Fault(text))
        rendezvous = prepared.rendezvous
        servers = sorted({target[0] for target, _ in rendezvous.members}) if rendezvous else []
        try:
            await self._each(servers, self._end_transfer, faults)
            if rendezvous is not None:
                faults = self._with_reported_faults(faults, rendezvous)
                sound = [server for server in servers if server not in faults]
                await self._each(sound, lambda server: self._prove(server, rendezvous, reports), faults)
        finally:
            await self._drop_posts()
        for server in prepared.faults:
            # A server that took no part may have an open update session, which would refuse other clients.
            with contextlib.suppress(EngineError):
                await self._fleet.client_now(server).end_weight_update()
        return faults

    async def _each(
        self, servers: Sequence[int], call: Callable[[int], Awaitable[None]], faults: dict[int, Fault]
    ) -> None:
        """Await call(server) for all servers at once. Errors of clients become faults, others are raised."""
        results = await asyncio.gather(*(call(server) for server in servers), return_exceptions=True)
        for server, result in zip(servers, results, strict=True):
            if isinstance(result, (ServerUnreachableError, ServerRefusedError)):
                faults.setdefault(server, Fault.of(result))
            elif isinstance(result, BaseException):
                raise result

    async def _start(self, server: int, version: int, attempt: str) -> None:
        """Pause a server and send it its instructions; that POST is answered when its receivers are done."""
        client = await self._fleet.client(server)
        # With "retract" a running request gives up its KV cache and computes it anew afterwards, so that every token
        # after the update comes from the new weights only. Most of the time no request is running.
        await client.pause_generation("retract")
        await _begin_session(client)
        payloads = [
            self._payload((server, tp_rank), attempt, client.url)
            for tp_rank in range(self._plan.reshard.engines.tp)
        ]
        # SGLang sets this name as soon as the loader returns, whatever became of the weights. It counts for nothing
        # until `_prove` accepts it, so that half-written weights never pass for the version.
        name = self._names[server] = self._fleet.names.new(server, version)
        update = client.update_weights_from_tensor(
            payloads, load_format=LOADER, flush_cache=True, weight_version=name
        )
        self._posts[server] = asyncio.ensure_future(update)

    def _payload(self, target: Target, attempt: str, url: str) -> str:
        """Return a target's instructions in SGLang's encoding of named tensors: JSON in place of a tensor's name."""
        has_layout = self._layout_sent.get(target) == url
        instructions = {
            "protocol": PROTOCOL,
            "attempt": attempt,
            "rank": self._index(target),
            "store": [self._store.address, self._store.port],
            "key": self._store.under(attempt).key,
            "backend": self._backend,
            "nccl": nccl_version() if self._backend == "nccl" else None,
            "timeout_s": self._timeout_s,
            "layout": self._layout,
            "body": None if has_layout else self._plan.incoming(*target),
        }
        self._layout_sent[target] = url
        named_tensors = [(json.dumps(instructions), torch.empty(0))]
        return b64encode(pickle.dumps(named_tensors)).decode()

    async def _await_hellos(
        self, attempt: str, servers: Sequence[int], faults: dict[int, Fault]
    ) -> dict[Target, _Hello]:
        """Return what each receiver says; servers that say an error or nothing go to `faults`."""
        hellos: dict[Target, _Hello] = {}
        deadline = time.monotonic() + self._timeout_s
        while True:
            waiting = [t for t in self._targets(servers) if t not in hellos and t[0] not in faults]
            if not waiting:
                return hellos
            for target in waiting:
                server = target[0]
                # Read in this order: a receiver says hello before its POST is answered, so a POST that was answered
                # while there was no hello means that no receiver ran.
                is_answered = self._posts[server].done()
                hello = self._store.under(attempt).get(f"hello/{self._index(target)}")
                if hello is not None and "error" in hello:
                    self._layout_sent.pop(target, None)
                    faults[server] = Fault(self._explained(hello["error"]))
                elif hello is not None:
                    hellos[target] = _Hello(hello["groups"], hello["held"])
                elif is_answered:
                    faults[server] = await self._fault_of_post(server)
                elif time.monotonic() > deadline:
                    faults[server] = Fault(f"no receiver called back in {self._timeout_s:g} s", True)
            await asyncio.sleep(_POLL_S)

    async def _fault_of_post(self, server: int) -> Fault:
        try:
            await self._posts[server]
        except (ServerUnreachableError, ServerRefusedError) as error:
            return Fault.of(error)
        return Fault(
            f"the server accepted the update, but its receiver never called back: check its log, and that it can reach "
            f"port {self._store.port} of rank 0's node"
        )

    def _explained(self, error: str) -> str:
        if error == UNKNOWN_LAYOUT:
            return "the receiver is a new process and needs the layout again"
        return f"its receiver refuses the weights: {error}"

    def _rendezvous(
        self,
        attempt: str,
        hellos: Mapping[Target, _Hello],
        faults: Mapping[int, Fault],
        kept_groups: Sequence[str],
    ) -> Rendezvous | None:
        targets = [target for target in sorted(hellos) if target[0] not in faults]
        if not targets:
            return None
        members = tuple((target, self._num_senders + place) for place, target in enumerate(targets))
        # The members are part of a group's name, so that an old group of this name gives everyone the same rank.
        described = ".".join(str(self._index(target)) for target in targets)
        kept = set(kept_groups).intersection(*(hellos[target].groups for target in targets))
        group = next((name for name in kept if name.startswith(f"{described}/")), f"{described}/{attempt}")
        size = self._num_senders + len(targets)
        store = self._store
        where = (store.address, store.port)
        return Rendezvous(attempt, where, store.under(attempt).key, group, size, members, self._timeout_s)

    def _with_changes(
        self, rendezvous: Rendezvous, hellos: Mapping[Target, _Hello], push: int, patchable: Collection[int]
    ) -> Rendezvous:
        """Name the weights, and decide which servers get their changes alone: those whose ranks all hold the base.

        The receivers' own word counts: a process that has restarted, or missed a push, does not hold it.
        """
        label, base = (f"{self._layout}/{number}" for number in (push, push - 1))
        lacking = {target[0] for target, hello in hellos.items() if base not in hello.held}
        patched = frozenset(
            target for target, _ in rendezvous.members if target[0] in patchable and target[0] not in lacking
        )
        return replace(rendezvous, label=label, base=base, patched=patched)

    def _with_reported_faults(self, faults: Mapping[int, Fault], rendezvous: Rendezvous) -> dict[int, Fault]:
        """Return the faults with those that receivers report in place of what their senders saw."""
        explained = dict(faults)
        for (server, tp_rank), _ in rendezvous.members:
            report = self._store.under(rendezvous.attempt).get(f"report/{self._index((server, tp_rank))}")
            # A receiver that failed knows why; its senders only saw the connection close. It is the other way round
            # when a sender has read a forged value, which must end the sync.
            is_forged = server in faults and FORGED in faults[server].message
            if report is not None and "error" in report and not is_forged:
                explained[server] = Fault(
                    f"TP rank {tp_rank}: {report['error']}", is_damaged=report["is_damaged"]
                )
        return explained

    async def _end_transfer(self, server: int) -> None:
        """Wait until the receivers are done, with success or not, and close the server's update session."""
        await self._posts[server]
        client = await self._fleet.client(server)
        await client.end_weight_update()

    async def _prove(self, server: int, rendezvous: Rendezvous, reports: Sequence[SendReport]) -> None:
        """Let a server sample if it is proven to hold the version; raise an EngineError otherwise.

        The checksums are those of the process that received this attempt, and only that process states the attempt's
        name. A process that was started since has another name, at whatever moment it took the other's place.
        """
        for target, _ in rendezvous.members:
            if target[0] == server:
                self._check_report(target, rendezvous.attempt, reports)
        client = await self._fleet.client(server)
        await confirm(self._fleet, server, client, self._names[server])
        await client.continue_generation()

    def _check_report(self, target: Target, attempt: str, reports: Sequence[SendReport]) -> None:
        """Raise ServerRefusedError unless the sum of the receiver's checksums is that of all senders' slices."""
        who = f"TP rank {target[1]} of server {target[0]}"
        report = self._store.under(attempt).get(f"report/{self._index(target)}")
        if report is None:
            raise ServerRefusedError(f"{who} gave no report of the sync")
        digests = [r.digests.get(target, (0, 0)) for r in reports]
        sent = [sum(digest[part] for digest in digests) % (1 << 64) for part in (0, 1)]
        if report["digest"] != sent:
            raise ServerRefusedError(f"{who} holds other weights than were sent: the checksums differ")

    async def _drop_posts(self) -> None:
        posts, self._posts = list(self._posts.values()), {}
        await cancel(posts)

    def _targets(self, servers: Sequence[int] | None = None) -> list[Target]:
        engines = self._plan.reshard.engines
        chosen = range(engines.num_engines) if servers is None else servers
        return [(server, tp_rank) for server in chosen for tp_rank in range(engines.tp)]

    def _index(self, target: Target) -> int:
        return target[0] * self._plan.reshard.engines.tp + target[1]


async def _begin_session(client: SGLangClient) -> None:
    """Open an update session; one that a failed attempt left open is ended first."""
    try:
        await client.begin_weight_update()
    except ServerRefusedError:
        await client.end_weight_update()
        await client.begin_weight_update()
