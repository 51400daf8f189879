"""Servers on every node of the job: the first rank of each node supervises them, and rank 0 uses all of them.

    rank 0                Fleet --> RemoteServer --"restart" I--> store --> NodeServers --> SupervisedServer
    first rank of a node                         <--"server" I: url, starts, failure--

A server ends with the rank that started it, and that rank ends with the job, so nothing else has to be watched.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from megatron_prime.engines.sglang.access import store_key
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.loader.signing import FORGED, ForgedValueError, SignedStore
from megatron_prime.engines.sglang.server import GRACE_S, ServerFailedError, SupervisedServer
from megatron_prime.parallel.rendezvous import address_towards, master_host, meeting_address
from megatron_prime.rollout.ranks import Ranks

_STATUS, _RESTART = "server", "restart"
_POLL_S = 0.25


class Server(Protocol):
    """A supervised server, here or on another node; see `SupervisedServer` for the methods."""

    index: int
    log_path: Path

    @property
    def url(self) -> str | None: ...  # noqa: D102

    @property
    def pid(self) -> int | None: ...  # noqa: D102

    def raise_if_failed(self) -> None: ...  # noqa: D102
    def restart(self) -> None: ...  # noqa: D102
    def ask_to_close(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of the training job, in the order of their first ranks."""

    first_ranks: tuple[int, ...]
    """The rank with LOCAL_RANK 0 of each node."""
    addresses: tuple[str, ...]
    """The address of each node as rank 0's node reaches it."""

    @classmethod
    def find(cls, ranks: Ranks, local_rank: int) -> "Nodes":
        """Find the nodes of the job. Collective over the training ranks."""
        found = ranks.gather_all([(local_rank, address_towards(master_host()))])
        first = [(rank, address) for rank, (local, address) in enumerate(found) if local == 0]
        return cls(tuple(rank for rank, _ in first), tuple(address for _, address in first))


class RemoteServer:
    """Rank 0's view of a server on another node."""

    pid = None
    """Process ids of other nodes are of no use here."""

    def __init__(self, store: SignedStore, index: int, log_path: Path) -> None:
        """Make a view of a server, by its index among all servers; `log_path` is a path on its node."""
        self.index = index
        self.log_path = log_path
        self._store = store
        self._num_ended = 0
        """Number of the last start that was asked to end."""
        self._num_seen = 0

    @property
    def url(self) -> str | None:
        """Address of the running server; None until it answers, and while it restarts."""
        status = self._status()
        return status["url"] if status["num_starts"] > self._num_ended else None

    @property
    def num_starts(self) -> int:
        """Number of times that the server became ready."""
        return self._status()["num_starts"]

    def raise_if_failed(self) -> None:
        """Raise ServerFailedError if the server's supervisor gave up."""
        if (failure := self._status()["failure"]) is not None:
            raise ServerFailedError(failure)

    def restart(self) -> None:
        """Have the server's node end it and start it again; wait until it has ended."""
        # The request names the start to end, so that it can't hit the next one.
        self._num_ended = self._status()["num_starts"]
        self._store.under(_RESTART).set(str(self.index), {"num_starts": self._num_ended})
        # The node needs up to 2 * GRACE_S to end the server, and polls the request.
        deadline = time.monotonic() + 3 * GRACE_S
        while self._status()["url"] is not None and self._status()["num_starts"] == self._num_ended:
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)

    def ask_to_close(self) -> None:
        """Do nothing: the server's node closes it when the engine is closed there."""

    def close(self) -> None:
        """Do nothing; see `ask_to_close`."""

    def _status(self) -> dict[str, Any]:
        unknown = {"url": None, "num_starts": 0, "failure": None}
        status = self._store.under(_STATUS).get(str(self.index)) or unknown
        # An old status that somebody repeats names an address that may have another owner by now.
        if status["num_starts"] < self._num_seen:
            raise ForgedValueError(f"the repeated status of SGLang server {self.index} {FORGED}")
        self._num_seen = status["num_starts"]
        return status


class NodeServers:
    """The servers of a node other than rank 0's, supervised by its first rank."""

    def __init__(
        self,
        plan: LaunchPlan,
        first_index: int,
        log_folder: Path,
        store: SignedStore,
        on_event: Callable[[str], None],
        may_start: threading.Event | None = None,
    ) -> None:
        """Start the servers in the background.

        Args:
            plan: their settings; `host` must be an address that rank 0's node can reach.
            first_index: index of the first of these servers among all.
            log_folder: folder for their logs.
            store: rank 0's store.
            on_event: see `SupervisedServer`.
            may_start: see `SupervisedServer`.
        """
        self._servers = start_servers(plan, first_index, log_folder, on_event, may_start)
        self._store = store
        self._published: dict[int, dict[str, Any]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sglang-node", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the servers. May be called twice."""
        self._closing.set()
        self._thread.join()
        for server in self._servers:
            server.ask_to_close()
        for server in self._servers:
            server.close()

    def _watch(self) -> None:
        # When rank 0's store is gone, the job has ended.
        with contextlib.suppress(RuntimeError):
            while not self._closing.wait(_POLL_S):
                for server in self._servers:
                    self._publish(server)
                    try:
                        asked = self._store.under(_RESTART).get(str(server.index))
                    except ForgedValueError as error:
                        self._publish(server, str(error))
                        return
                    if (
                        asked is not None
                        and asked["num_starts"] == server.num_starts
                        and server.url is not None
                    ):
                        server.restart()
                        self._publish(server)

    def _publish(self, server: SupervisedServer, failure: str | None = None) -> None:
        status = {"url": server.url, "num_starts": server.num_starts, "failure": failure}
        try:
            server.raise_if_failed()
        except ServerFailedError as error:
            status["failure"] = str(error)
        if self._published.get(server.index) != status:
            self._store.under(_STATUS).set(str(server.index), status)
            self._published[server.index] = status


def start_servers(
    plan: LaunchPlan,
    first_index: int,
    log_folder: Path,
    on_event: Callable[[str], None],
    may_start: threading.Event | None = None,
) -> list[SupervisedServer]:
    """Start the servers of a node in the background."""
    return [
        SupervisedServer(
            plan, index, log_folder / f"server-{index}.log", on_event=on_event, may_start=may_start
        )
        for index in range(first_index, first_index + plan.settings.num_servers)
    ]


def start_everywhere(
    plan: LaunchPlan,
    nodes: Nodes,
    ranks: Ranks,
    log_folder: Path,
    on_event: Callable[[str], None],
    timeout_s: float,
    may_start: threading.Event | None = None,
) -> tuple[list[Server], NodeServers | None]:
    """Start `num_servers` servers on each node, numbered node by node. Collective over the training ranks.

    See `SupervisedServer` for on_event and may_start.

    Returns:
        On rank 0 the servers of all nodes; on the first rank of another node no servers, but their supervisor; on other
        ranks nothing.
    """
    if len(nodes.first_ranks) == 1:
        own = start_servers(plan, 0, log_folder, on_event, may_start) if ranks.rank == 0 else []
        return [*own], None
    per_node = plan.settings.num_servers
    key = store_key(plan.secret)
    store: SignedStore | None = None
    if ranks.rank == 0:
        store = SignedStore.host(meeting_address(nodes.addresses[0], nodes.addresses), timeout_s, key)
    address, port = ranks.from_first((store.address, store.port) if store is not None else None)
    if store is not None:
        own = start_servers(plan, 0, log_folder, on_event, may_start)
        total = per_node * len(nodes.first_ranks)
        others = [
            RemoteServer(store, index, log_folder / f"server-{index}.log") for index in range(per_node, total)
        ]
        return [*own, *others], None
    if ranks.rank not in nodes.first_ranks:
        return [], None
    place = nodes.first_ranks.index(ranks.rank)
    placed = replace(plan, host=nodes.addresses[place])
    home = SignedStore.connect(address, port, timeout_s, key)
    return [], NodeServers(placed, place * per_node, log_folder, home, on_event, may_start)
