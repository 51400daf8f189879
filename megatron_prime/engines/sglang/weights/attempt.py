"""The driver's part in one attempt to give SGLang servers new weights: control calls, and the proof at the end."""

import asyncio
import contextlib
import json
import pickle
import time
import uuid
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.fleet import Fleet, cancel
from megatron_prime.engines.sglang.launch import LOADER
from megatron_prime.engines.sglang.loader.receiver import PROTOCOL, UNKNOWN_LAYOUT
from megatron_prime.engines.sglang.weights.manifest import Manifests, Target
from megatron_prime.engines.sglang.weights.send import Meeting, SendReport
from megatron_prime.parallel.rendezvous import LOOPBACK, RendezvousStore, address_towards, master_host
from megatron_prime.rollout.engine import EngineError

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a server did not get its weights."""

    message: str
    is_unreachable: bool = False
    """Whether it gave no answer, so that it may come back as a new process."""

    @classmethod
    def of(cls, error: EngineError) -> "Fault":
        """The fault that an error of a call says."""
        return cls(str(error), isinstance(error, ServerUnreachableError))


@dataclass(frozen=True, slots=True)
class Opened:
    """What the driver found out before the transfer, for all ranks."""

    meeting: Meeting | None
    """None when no server takes part."""
    faults: dict[int, Fault]


class Conductor:
    """Leads attempts. All coroutines belong to the driver's event loop; one attempt at a time."""

    def __init__(
        self, fleet: Fleet, manifests: Manifests, num_senders: int, backend: str, timeout_s: float
    ) -> None:
        """Keep the parts, and open the store that trainers and receivers meet in.

        Args:
            fleet: the servers, numbered as the plan's engines.
            manifests: of the plan.
            num_senders: training ranks, which come first in the process group.
            backend: gloo or nccl.
            timeout_s: deadline of each step.
        """
        self._fleet = fleet
        self._manifests = manifests
        self._num_senders = num_senders
        self._backend = backend
        self._timeout_s = timeout_s
        self._store = RendezvousStore(timeout_s)
        self._bodies = {target: json.dumps(manifests.incoming(*target)) for target in self._targets()}
        self._layout = uuid.uuid4().hex
        self._told: dict[Target, str] = {}
        self._posts: dict[int, asyncio.Task[None]] = {}

    async def open(self, servers: Sequence[int], version: int, kept_groups: Sequence[str]) -> Opened:
        """Bring receivers to the meeting point. The senders must go there next, then `close` must be called.

        Args:
            servers: who lacks the version.
            version: what they will serve.
            kept_groups: process groups that every sender can use again.

        Raises:
            EngineError: a server can't be started any more.
        """
        attempt = f"{version}-{uuid.uuid4().hex[:12]}"
        faults: dict[int, Fault] = {}
        try:
            host = await self._advertised_host()
            await self._each(servers, lambda server: self._start(server, version, attempt, host), faults)
            hellos = await self._await_hellos(attempt, servers, faults)
        except BaseException:
            await self._drop_posts()
            raise
        meeting = self._meeting(attempt, host, hellos, faults, kept_groups)
        go: dict[str, Any] = {"group": "", "size": 0, "ranks": {}}
        if meeting is not None:
            ranks = {str(self._index(target)): rank for target, rank in meeting.members}
            go = {"group": meeting.group, "size": meeting.size, "ranks": ranks}
        self._store.set(attempt, "go", go)
        return Opened(meeting, faults)

    async def close(self, opened: Opened, reports: Sequence[SendReport], version: int) -> dict[int, Fault]:
        """End an attempt: servers that are proven to hold the version sample again, the others stay paused.

        Returns all faults of the attempt by server.
        """
        faults = dict(opened.faults)
        for report in reports:
            for server, text in report.faults.items():
                faults.setdefault(server, Fault(text))
        meeting = opened.meeting
        servers = sorted({target[0] for target, _ in meeting.members}) if meeting else []
        try:
            await self._each(servers, self._end_transfer, faults)
            if meeting is not None:
                # A receiver that gave up tells why; its senders only saw the connection close.
                faults |= self._told_faults(meeting)
                sound = [server for server in servers if server not in faults]
                await self._each(sound, lambda server: self._prove(server, meeting, reports, version), faults)
        finally:
            await self._drop_posts()
        for server in opened.faults:
            # It took no part; what it may have opened must not stay open for other clients.
            with contextlib.suppress(EngineError):
                await self._fleet.client_now(server).end_weight_update()
        return faults

    async def _each(
        self, servers: Sequence[int], call: Callable[[int], Awaitable[None]], faults: dict[int, Fault]
    ) -> None:
        """Await call(server) of all at once; EngineErrors of clients become faults, others are raised."""
        results = await asyncio.gather(*(call(server) for server in servers), return_exceptions=True)
        for server, result in zip(servers, results, strict=True):
            if isinstance(result, (ServerUnreachableError, ServerRefusedError)):
                faults.setdefault(server, Fault.of(result))
            elif isinstance(result, BaseException):
                raise result

    async def _start(self, server: int, version: int, attempt: str, host: str) -> None:
        """Pause a server and hand it its manifests; the answer comes when its receivers are done."""
        client = await self._fleet.client(server)
        # Nothing runs now in most cases; what does is computed anew with the new weights.
        await client.pause_generation("retract")
        await _begin_session(client)
        payloads = [
            self._payload((server, tp_rank), attempt, host, client.url)
            for tp_rank in range(self._manifests.plan.engines.tp)
        ]
        update = client.update_weights_from_tensor(
            payloads, load_format=LOADER, flush_cache=True, weight_version=f"incomplete-{version}"
        )
        self._posts[server] = asyncio.ensure_future(update)

    def _payload(self, target: Target, attempt: str, host: str, url: str) -> str:
        """What SGLang hands to the receiver: a manifest in place of a tensor's name. Plain pickle, no shared memory."""
        is_told = self._told.get(target) == url
        manifest = {
            "protocol": PROTOCOL,
            "attempt": attempt,
            "rank": self._index(target),
            "store": [host, self._store.port],
            "backend": self._backend,
            "timeout_s": self._timeout_s,
            "layout": self._layout,
            "body": None if is_told else self._bodies[target],
        }
        self._told[target] = url
        named_tensors = [(json.dumps(manifest), torch.empty(0))]
        return b64encode(pickle.dumps(named_tensors)).decode()

    async def _await_hellos(
        self, attempt: str, servers: Sequence[int], faults: dict[int, Fault]
    ) -> dict[Target, list[str]]:
        """The groups that each receiver has kept; servers that gave no word, or a bad one, go to faults."""
        hellos: dict[Target, list[str]] = {}
        deadline = time.monotonic() + self._timeout_s
        while True:
            waiting = [t for t in self._targets(servers) if t not in hellos and t[0] not in faults]
            if not waiting:
                return hellos
            for target in waiting:
                server = target[0]
                # In this order: a receiver says hello before its POST is answered.
                is_answered = self._posts[server].done()
                hello = self._store.get(attempt, f"hello/{self._index(target)}")
                if hello is not None and "error" in hello:
                    self._told.pop(target, None)
                    faults[server] = Fault(self._explained(hello["error"]))
                elif hello is not None:
                    hellos[target] = hello["groups"]
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
            f"it took the manifest, but its receiver never called back: can it reach port {self._store.port} of rank "
            "0's node? Its log tells"
        )

    def _explained(self, error: str) -> str:
        if error == UNKNOWN_LAYOUT:
            return "the receiver is a new process and must be told the layout again"
        return f"its model does not fit the trainer's: {error}"

    def _meeting(
        self,
        attempt: str,
        host: str,
        hellos: Mapping[Target, list[str]],
        faults: Mapping[int, Fault],
        kept_groups: Sequence[str],
    ) -> Meeting | None:
        targets = [target for target in sorted(hellos) if target[0] not in faults]
        if not targets:
            return None
        members = tuple((target, self._num_senders + place) for place, target in enumerate(targets))
        # A group is named by its members, so one that all have kept gives them the same ranks.
        described = ".".join(str(self._index(target)) for target in targets)
        kept = set(kept_groups).intersection(*(hellos[target] for target in targets))
        group = next((name for name in kept if name.startswith(f"{described}/")), f"{described}/{attempt}")
        size = self._num_senders + len(targets)
        return Meeting(attempt, (host, self._store.port), group, size, members, self._timeout_s)

    def _told_faults(self, meeting: Meeting) -> dict[int, Fault]:
        faults: dict[int, Fault] = {}
        for (server, tp_rank), _ in meeting.members:
            report = self._store.get(meeting.attempt, f"report/{self._index((server, tp_rank))}")
            if report is not None and "error" in report:
                faults[server] = Fault(f"TP rank {tp_rank}: {report['error']}")
        return faults

    async def _end_transfer(self, server: int) -> None:
        """The receivers are done, well or not; close the server's session."""
        await self._posts[server]
        client = await self._fleet.client(server)
        await client.end_weight_update()

    async def _prove(
        self, server: int, meeting: Meeting, reports: Sequence[SendReport], version: int
    ) -> None:
        """Let a server sample if it holds the version; raises ServerRefusedError otherwise."""
        for target, _ in meeting.members:
            if target[0] == server:
                self._check_report(target, meeting.attempt, reports)
        client = await self._fleet.client(server)
        await client.update_weight_version(str(version))
        served = await client.weight_version()
        if served != str(version):
            raise ServerRefusedError(f"{client.url} says it serves {served!r} after the sync to {version}")
        await client.continue_generation()

    def _check_report(self, target: Target, attempt: str, reports: Sequence[SendReport]) -> None:
        """The receiver's sums, taken from its parameters, must be those of what was sent."""
        who = f"TP rank {target[1]} of server {target[0]}"
        report = self._store.get(attempt, f"report/{self._index(target)}")
        if report is None:
            raise ServerRefusedError(f"{who} gave no report of the sync")
        digests = [r.digests.get(target, (0, 0)) for r in reports]
        sent = [sum(digest[part] for digest in digests) % (1 << 64) for part in (0, 1)]
        if report["digest"] != sent:
            raise ServerRefusedError(f"{who} holds other weights than were sent: the checksums differ")

    async def _drop_posts(self) -> None:
        posts, self._posts = list(self._posts.values()), {}
        await cancel(posts)

    async def _advertised_host(self) -> str:
        """An address of this node that servers and training ranks reach."""
        clients = await self._fleet.clients()
        hosts = [urlsplit(client.url).hostname or "" for client in clients]
        # Where the training ranks found this node; one node's job says its own loopback.
        hosts.append(master_host())
        return address_towards(next((host for host in hosts if host not in LOOPBACK), LOOPBACK[0]))

    def _targets(self, servers: Sequence[int] | None = None) -> list[Target]:
        engines = self._manifests.plan.engines
        chosen = range(engines.num_engines) if servers is None else servers
        return [(server, tp_rank) for server in chosen for tp_rank in range(engines.tp)]

    def _index(self, target: Target) -> int:
        return target[0] * self._manifests.plan.engines.tp + target[1]


async def _begin_session(client: SGLangClient) -> None:
    """Open an update session; one that a failed attempt left open is ended first."""
    try:
        await client.begin_weight_update()
    except ServerRefusedError:
        await client.end_weight_update()
        await client.begin_weight_update()
