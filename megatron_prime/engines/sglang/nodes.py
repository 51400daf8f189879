"""Servers on every node of the job: the first rank of a node keeps those there, rank 0 sees them all.

    rank 0                Fleet --> RemoteServer --"restart" I--> store --> NodeServers --> SupervisedServer
    first rank of a node                         <--"server" I: url, starts, failure--

A server ends with the rank that started it, and that rank with the job: nothing else has to be watched.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.server import GRACE_S, ServerFailedError, SupervisedServer
from megatron_prime.parallel.rendezvous import RendezvousStore, address_towards, master_host
from megatron_prime.rollout.ranks import Ranks

_SAYS, _RESTART = "server", "restart"
_POLL_S = 0.25


class Server(Protocol):
    """A server that is kept alive until it is closed, here or on another node: see `SupervisedServer`."""

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
    """The rank of each node whose LOCAL_RANK is 0."""
    addresses: tuple[str, ...]
    """What rank 0's node reaches each by."""

    @classmethod
    def find(cls, ranks: Ranks, local_rank: int) -> "Nodes":
        """Collective over the training ranks."""
        told = ranks.gather_all([(local_rank, address_towards(master_host()))])
        first = [(rank, address) for rank, (local, address) in enumerate(told) if local == 0]
        return cls(tuple(rank for rank, _ in first), tuple(address for _, address in first))


class RemoteServer:
    """What rank 0 knows of a server on another node."""

    pid = None
    """Belongs to another node."""

    def __init__(self, store: RendezvousStore, index: int, log_path: Path) -> None:
        """`index` among all servers; `log_path` as that node names it."""
        self.index = index
        self.log_path = log_path
        self._store = store
        self._num_ended = 0
        """Starts of it that were asked to end."""

    @property
    def url(self) -> str | None:
        """Address of the running server; None until it answers, and from a restart until the next start."""
        says = self._says()
        return says["url"] if says["num_starts"] > self._num_ended else None

    @property
    def num_starts(self) -> int:
        """How often the server became ready."""
        return self._says()["num_starts"]

    def raise_if_failed(self) -> None:
        """Raises ServerFailedError when its supervisor gave up."""
        if (failure := self._says()["failure"]) is not None:
            raise ServerFailedError(failure)

    def restart(self) -> None:
        """End a server that hangs; its node starts it again. Waits until it has ended."""
        self._num_ended = self._says()["num_starts"]
        self._store.set(_RESTART, str(self.index), {"num_starts": self._num_ended})
        deadline = time.monotonic() + 3 * GRACE_S
        while self._says()["url"] is not None and self._says()["num_starts"] == self._num_ended:
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)

    def ask_to_close(self) -> None:
        """Its node closes it, when the engine is closed there."""

    def close(self) -> None:
        """See `ask_to_close`."""

    def _says(self) -> dict[str, Any]:
        unknown = {"url": None, "num_starts": 0, "failure": None}
        return self._store.get(_SAYS, str(self.index)) or unknown


class NodeServers:
    """The servers of one node that is not rank 0's, kept by its first rank."""

    def __init__(
        self,
        plan: LaunchPlan,
        first_index: int,
        log_folder: Path,
        store: RendezvousStore,
        on_event: Callable[[str], None],
    ) -> None:
        """Start them in the background.

        Args:
            plan: how to start each; `host` must be an address that rank 0's node reaches.
            first_index: of these servers among all.
            log_folder: for their logs.
            store: rank 0's.
            on_event: see `SupervisedServer`.
        """
        self._servers = start_servers(plan, first_index, log_folder, on_event)
        self._store = store
        self._said: dict[int, dict[str, Any]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._report, name="sglang-node", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the servers. May be called twice."""
        self._closing.set()
        self._thread.join()
        for server in self._servers:
            server.ask_to_close()
        for server in self._servers:
            server.close()

    def _report(self) -> None:
        # Without rank 0's store the job is at its end.
        with contextlib.suppress(RuntimeError):
            while not self._closing.wait(_POLL_S):
                for server in self._servers:
                    self._say(server)
                    asked = self._store.get(_RESTART, str(server.index))
                    if (
                        asked is not None
                        and asked["num_starts"] == server.num_starts
                        and server.url is not None
                    ):
                        server.restart()
                        self._say(server)

    def _say(self, server: SupervisedServer) -> None:
        says = {"url": server.url, "num_starts": server.num_starts, "failure": None}
        try:
            server.raise_if_failed()
        except ServerFailedError as error:
            says["failure"] = str(error)
        if self._said.get(server.index) != says:
            self._store.set(_SAYS, str(server.index), says)
            self._said[server.index] = says


def start_servers(
    plan: LaunchPlan, first_index: int, log_folder: Path, on_event: Callable[[str], None]
) -> list[SupervisedServer]:
    """Start a node's servers in the background."""
    return [
        SupervisedServer(plan, index, log_folder / f"server-{index}.log", on_event=on_event)
        for index in range(first_index, first_index + plan.settings.num_servers)
    ]


def start_everywhere(
    plan: LaunchPlan,
    nodes: Nodes,
    ranks: Ranks,
    log_folder: Path,
    on_event: Callable[[str], None],
    timeout_s: float,
) -> tuple[list[Server], NodeServers | None]:
    """Start `num_servers` on each node; rank 0 gets all of them, another node's first rank what keeps its own.

    Collective over the training ranks. Servers are numbered node by node.
    """
    if len(nodes.first_ranks) == 1:
        return [*start_servers(plan, 0, log_folder, on_event)] if ranks.rank == 0 else [], None
    per_node = plan.settings.num_servers
    store = RendezvousStore(timeout_s) if ranks.rank == 0 else None
    [port] = ranks.gather_all([store.port] if store is not None else [])
    if store is not None:
        own: list[Server] = [*start_servers(plan, 0, log_folder, on_event)]
        total = per_node * len(nodes.first_ranks)
        others = [
            RemoteServer(store, index, log_folder / f"server-{index}.log") for index in range(per_node, total)
        ]
        return [*own, *others], None
    if ranks.rank not in nodes.first_ranks:
        return [], None
    place = nodes.first_ranks.index(ranks.rank)
    here = replace(plan, host=nodes.addresses[place])
    home = RendezvousStore.at(master_host(), port, timeout_s)
    return [], NodeServers(here, place * per_node, log_folder, home, on_event)
