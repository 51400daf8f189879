"""The servers of one engine as its event loop sees them: which are up, and how the others are recovered.

up --no answer, or other weights--> down: [restart] -> answers again -> resync of its weights -> up
                                                             or, while the weights change: out until the next sync
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from megatron_prime.config.server_keys import attached_keys
from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.access import key_of
from megatron_prime.engines.sglang.balancer import Balancer
from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.nodes import Server
from megatron_prime.engines.sglang.versions import VersionNames
from megatron_prime.rollout.engine import NO_WEIGHTS, EngineError

_LOG = logging.getLogger(__name__)
HEALTH_EVERY_S = 15.0
MAX_MISSED_HEALTH = 2
"""A server that misses so many health probes in a row is considered hanging and restarted."""
MAX_RECOVERIES = 8
"""Tries to recover one server before an error is raised."""
_POLL_S = 0.25
_KEY_REFUSED = (401, 403)
"""HTTP statuses of a server that has another key."""

Resync = Callable[[int], Awaitable[None]]
"""Gives a server, by index, the current weights. Raises ServerUnreachableError when it dies meanwhile."""


async def ask_attached(settings: SGLangConfig) -> tuple[list[str], list[str]]:
    """Ask the servers of settings.urls once, as a run does at its start; see `Fleet.ask_attached`."""

    async def never(_: int) -> None:
        raise AssertionError("nothing is synced")

    fleet = Fleet([], settings, never)
    try:
        return await fleet.ask_attached()
    finally:
        await fleet.aclose()


class Fleet:
    """The servers that were started by this job or attached to. All coroutines belong to one event loop."""

    def __init__(
        self, supervised: Sequence[Server], settings: SGLangConfig, resync: Resync, secret: str = ""
    ) -> None:
        """Make a fleet without contacting the servers.

        Args:
            supervised: the servers that this job started; empty when attached to settings.urls.
            settings: of the engine.
            resync: called for every server that came back without the fleet's weights.
            secret: of the run, for servers that it started; empty if these need no API key.

        Raises:
            ValueError: rollout.sglang.api_key_file can't be used.
        """
        self._supervised = list(supervised)
        self._settings = settings
        self._resync = resync
        self._secret = secret
        self._attached_keys = attached_keys(settings)
        self._clients: dict[int, SGLangClient] = {}
        self._seen: set[int] = set()
        """The attached servers that have answered."""
        self._recoveries: dict[int, asyncio.Task[None]] = {}
        self.can_resync = True
        """Whether the trainer has the weights of the servers. While it changes them, a server that lost its own is out
        until the next weight sync."""
        self._out: set[int] = set()
        """The servers that wait for the next weight sync."""
        self._watching: asyncio.Task[None] | None = None
        self._num_watches = 0
        """Streams that need the watch: an evaluation samples beside a stream that lasts."""
        self._is_paused = False
        self.policy_version = NO_WEIGHTS
        """The version that every server that is up serves."""
        self.names = VersionNames()
        """The names of the servers' weights."""
        self.num_recoveries = 0
        """Number of recoveries so far."""
        self.balancer = Balancer(len(supervised) or len(settings.urls), settings.concurrency)

    @property
    def num_servers(self) -> int:
        """Number of servers, up or down."""
        return len(self._supervised) or len(self._settings.urls)

    async def client(self, server: int) -> SGLangClient:
        """Wait until the server answers and return a client of it.

        Raises EngineError after rollout.sglang.startup_timeout_s, or when the server's supervisor gave up.
        """
        deadline = time.monotonic() + self._settings.startup_timeout_s
        while True:
            url = self._url(server)
            if url is not None and (client := await self._answering(server, url)) is not None:
                return client
            if time.monotonic() > deadline:
                raise EngineError(
                    f"SGLang server {server} ({url or 'not started yet'}) gave no answer in rollout.sglang."
                    f"startup_timeout_s = {self._settings.startup_timeout_s:g} s: {self._hint(server)}"
                )
            await asyncio.sleep(_POLL_S)

    def api_key(self, server: int, url: str) -> str:
        """Return the API key of a server at an address; empty if it has none."""
        if not self._supervised:
            return self._attached_keys[server]
        return key_of(self._secret, url) if self._secret else ""

    def client_now(self, server: int) -> SGLangClient:
        """Return the client of a server that is up, without a probe. Raises ServerUnreachableError if it is down."""
        client = self._clients.get(server)
        if client is None or not self.balancer.is_up(server):
            raise ServerUnreachableError(f"SGLang server {server} is down")
        return client

    def last_client(self, server: int) -> SGLangClient | None:
        """Return the client that last reached the server; None if there is none or the server restarted since."""
        client = self._clients.get(server)
        return client if client is not None and self._url(server) == client.url else None

    async def restart(self, server: int, client: SGLangClient) -> bool:
        """End the server process behind `client`, which its supervisor then starts again.

        Does nothing if it was restarted already. Returns False for an attached server, which can't be restarted.
        """
        if not self._supervised:
            return False
        if self._supervised[server].url == client.url:
            await asyncio.to_thread(self._supervised[server].restart)
        return True

    async def clients(self) -> list[SGLangClient]:
        """Wait until all servers answer and return their clients."""
        return list(await asyncio.gather(*(self.client(server) for server in range(self.num_servers))))

    async def ask_attached(self) -> tuple[list[str], list[str]]:
        """Ask every attached server once, and return why a run would end, and what it would wait for."""
        faults, waits = [], []
        for server, url in enumerate(self._settings.urls):
            try:
                client = await self._answering(server, url.rstrip("/"))
            except ServerRefusedError as error:
                key = ": rollout.sglang.api_key_file names its key" if error.status in _KEY_REFUSED else ""
                faults.append(f"rollout.sglang.urls: {error}{key}")
                continue
            if client is None:
                waits.append(
                    f"rollout.sglang.urls: {url} gives no answer now: {self._hint(server)} A run waits for it up to "
                    f"rollout.sglang.startup_timeout_s = {self._settings.startup_timeout_s:g} s"
                )
        return faults, waits

    async def weight_versions(self) -> list[int]:
        """Return each server's proven version; NO_WEIGHTS for weights that are not proven, or lost with a process.

        Raises ForeignWeightsError when a server has weights of somebody else.
        """
        versions = []
        for server in range(self.num_servers):
            try:
                versions.append(await self._version(server))
            except ServerUnreachableError:
                # It has ended since it answered the last call.
                versions.append(NO_WEIGHTS)
        return versions

    def report(self, server: int, *, hangs: bool = False) -> None:
        """Report that a server gave no answer or has wrong weights; it gets no requests until it has recovered."""
        before = self._recoveries.get(server)
        # One that has failed is kept for `wait_for`, which raises its error.
        is_recovering = before is not None and not (before.done() and before.exception() is None)
        if not is_recovering and server not in self._out:
            # The sync that is under way waits for the server itself.
            work = self._leave_out(server) if self._is_paused else self._recover(server, hangs)
            self._recoveries[server] = asyncio.ensure_future(work)

    async def let_in(self) -> None:
        """Give requests again to the servers that waited for a weight sync, once it has reached them."""
        for server in self._out:
            self.balancer.set_up(server, True)
        self.num_recoveries += len(self._out)
        self._out.clear()
        # The weights that the servers have now are those of the trainer.
        self.can_resync = True

    async def keep_weights(self) -> None:
        """Resync no server until `let_in`: the trainer begins to change the weights. Those that are down are out."""
        self.can_resync = False
        await self._give_up_recoveries()

    async def pause(self, until_idle: bool) -> None:
        """Let no group begin on the servers until `go_on`, for a weight sync, which pauses them one by one.

        Args:
            until_idle: wait until the responses in work have ended; otherwise they continue with the new weights.
        """
        self.balancer.hold()
        if until_idle:
            await self.balancer.wait_until_idle()
        # From here on the sync waits for servers that are down, and restarts those that hang.
        self._is_paused = True
        await self._give_up_recoveries()

    async def go_on(self) -> None:
        """Undo `pause`."""
        self._is_paused = False
        self.balancer.release()

    def start_watch(self) -> None:
        """Begin to probe the servers' health, which lasts until `stop_watch`."""
        self._num_watches += 1
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())

    async def stop_watch(self) -> None:
        """End the watch. Where servers can't be resynced, those that are down stay out until the next weight sync."""
        self._num_watches -= 1
        if self._num_watches:
            return
        watching, self._watching = self._watching, None
        if watching is not None:
            await cancel([watching])
        if not self.can_resync:
            await self._give_up_recoveries()

    async def wait_for(self, work: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
        """Wait until `work` is done, and return whether it is by the timeout; for use while the watch is on.

        Raises EngineError as soon as a server can't be recovered, or when all of them are out.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not work.done():
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not await self._any_change({work}, left_s):
                break
        return work.done()

    async def wait_until_up(self) -> None:
        """Wait until all servers are up again that can be resynced; see `wait_for`."""
        while self._recoveries and self.can_resync:
            await self._any_change(set(), None)

    async def _any_change(self, waited: set[asyncio.Future[Any]], timeout_s: float | None) -> bool:
        """Wait for a change of what is awaited, of a recovery or of the watch; return whether there was one."""
        assert self._watching is not None
        waited = waited | {self._watching, *self._recoveries.values()}
        done, _ = await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self._reap()
        if self._watching.done():  # The watch only ends with an error.
            self._watching.result()
        return bool(done)

    async def aclose(self) -> None:
        """End recoveries and close connections. The supervisors close the servers themselves."""
        await cancel(list(self._recoveries.values()))
        for client in self._clients.values():
            await client.aclose()

    def _reap(self) -> None:
        for server, task in list(self._recoveries.items()):
            if task.done():
                del self._recoveries[server]
                task.result()

    async def _give_up_recoveries(self) -> None:
        """Leave the servers that are down out until the next weight sync."""
        recoveries, self._recoveries = self._recoveries, {}
        await cancel(list(recoveries.values()))
        for server, task in recoveries.items():
            if task.cancelled() or task.exception() is not None:
                await self._leave_out(server)

    async def _leave_out(self, server: int) -> None:
        self._out.add(server)
        self.balancer.set_up(server, False)

    async def _recover(self, server: int, hangs: bool) -> None:
        self.balancer.set_up(server, False)
        if hangs and self._supervised:
            await asyncio.to_thread(self._supervised[server].restart)
        for _ in range(MAX_RECOVERIES):
            # A server that is shutting down may still answer once: wait, so that it is not taken for recovered.
            await asyncio.sleep(_POLL_S)
            try:
                # Before the version, which the HTTP process states even while the scheduler hangs: the server would get
                # the same requests again and lose them.
                await self._wait_for_scheduler(server)
                # A hiccup of the network, for example, needs no resync: the weights are still there.
                if await self._version(server) != self.policy_version:
                    if not self.can_resync:
                        self._wait_for_sync(server)
                        return
                    await self._resync(server)
                if await self._version(server) == self.policy_version:
                    self.num_recoveries += 1
                    self.balancer.set_up(server, True)
                    return
            except ServerUnreachableError:
                continue
        raise EngineError(
            f"SGLang server {server} could not be brought back to policy version {self.policy_version} in "
            f"{MAX_RECOVERIES} tries: {self._hint(server)}"
        )

    def _wait_for_sync(self, server: int) -> None:
        _LOG.warning(
            "SGLang server %d has lost its weights and gets no requests before the next weight sync, because the "
            "trainer changes the policy now",
            server,
        )
        self._out.add(server)
        if len(self._out) == self.num_servers:
            raise EngineError(
                f"no SGLang server is left with policy version {self.policy_version}, which the trainer has changed "
                f"since: {self._hint(server)}"
            )

    async def _wait_for_scheduler(self, server: int) -> None:
        """Return when the server's scheduler answers; a server of this job that hangs is restarted.

        Raises EngineError after rollout.sglang.startup_timeout_s.
        """
        deadline = time.monotonic() + self._settings.startup_timeout_s
        num_missed = 0
        while True:
            client = await self.client(server)
            try:
                await client.check_health()
                return
            except ServerUnreachableError as error:
                num_missed += 1
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the scheduler of SGLang server {server} gave no answer in rollout.sglang.startup_timeout_s = "
                        f"{self._settings.startup_timeout_s:g} s ({error}): {self._hint(server)}"
                    ) from error
            if num_missed % MAX_MISSED_HEALTH == 0:
                await self.restart(server, client)
            await asyncio.sleep(_POLL_S)

    async def _version(self, server: int) -> int:
        client = await self.client(server)
        return self.names.version_of(server, await client.weight_version())

    async def _watch(self) -> None:
        num_missed = [0] * self.num_servers
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            for server in range(self.num_servers):
                # A server that is down is being recovered already, and one that is paused gives no sign.
                if not self.balancer.is_up(server) or server not in self._clients or self._is_paused:
                    num_missed[server] = 0
                    continue
                try:
                    await self._clients[server].check_health()
                    num_missed[server] = 0
                except ServerUnreachableError:
                    num_missed[server] += 1
                if num_missed[server] >= MAX_MISSED_HEALTH:
                    num_missed[server] = 0
                    self.report(server, hangs=True)

    def _url(self, server: int) -> str | None:
        if not self._supervised:
            return self._settings.urls[server].rstrip("/")
        self._supervised[server].raise_if_failed()
        return self._supervised[server].url

    async def _answering(self, server: int, url: str) -> SGLangClient | None:
        client = self._clients.get(server)
        if client is None or client.url != url:
            if client is not None:
                await client.aclose()
            settings = self._settings
            client = self._clients[server] = SGLangClient(
                url,
                api_key=self.api_key(server, url),
                request_timeout_s=settings.request_timeout_s,
                control_timeout_s=settings.control_timeout_s,
            )
        try:
            info = await client.model_info(retry=False)
        except ServerUnreachableError:
            return None
        if not self._supervised and server not in self._seen:
            self._seen.add(server)
            self.names.see_first(server, str(info.get("weight_version", "")))
            await self._warn_if_open(server, url)
        return client

    async def _warn_if_open(self, server: int, url: str) -> None:
        stranger = SGLangClient(url)
        try:
            await stranger.model_info(retry=False)
        except EngineError:
            return
        finally:
            await stranger.aclose()
        _LOG.warning(
            "SGLang server %d (%s) answers calls without an API key: whoever can reach it can read the responses and "
            "replace the weights. Start it with a key, and name the key's file in rollout.sglang.api_key_file; see "
            "docs/threat-model.md",
            server,
            url,
        )

    def _hint(self, server: int) -> str:
        if self._supervised:
            return f"see {self._supervised[server].log_path}"
        return "is it running, and reachable from the node of rank 0?"


async def cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel the tasks that still run and wait for all; their exceptions are dropped, as they are raised elsewhere."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
