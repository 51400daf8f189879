"""Memory of servers that share GPUs with the trainer: they free theirs while it trains.

awake --release--> no memory --wake_for_weights--> weights, without content --(a weight sync), wake--> awake
"""

import asyncio
import os
from collections.abc import Mapping

from megatron_prime.engines.sglang.client import ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.launch import LaunchPlan, gpu_names
from megatron_prime.rollout.engine import EngineError

WEIGHTS = ("weights",)
WORK_SPACE = ("kv_cache", "cuda_graph")
"""The memory that sampling needs besides weights."""


def is_colocated(plan: LaunchPlan, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the servers free memory for the trainer: by rollout.sglang.colocated, or else by their GPUs.

    Training ranks use the first LOCAL_WORLD_SIZE GPUs that are known of the node. By default attached servers and
    servers on CPUs keep their memory.
    """
    num_trainers = 0 if plan.device == "cpu" else int(environment.get("LOCAL_WORLD_SIZE", "1"))
    trainers = set(gpu_names(range(num_trainers), plan.visible(environment)))
    servers = range(plan.settings.num_servers)
    return plan.settings.is_colocated_on(
        trainers, (gpu for server in servers for gpu in plan.gpus(server, environment))
    )


class ServerMemory:
    """Frees and allocates the servers' memory, and records which server has freed what.

    The record is needed because SGLang crashes when it is asked to allocate memory that it has not freed. Coroutines
    belong to the fleet's event loop. A server that gives no answer is ended, and its supervisor starts it again with
    all its memory. The state of an attached server that gives no answer is unknown, which is an EngineError.
    """

    def __init__(self, fleet: Fleet, is_enabled: bool) -> None:
        """Start with all servers awake. Unless enabled, every method does nothing."""
        self._fleet = fleet
        self._is_enabled = is_enabled
        self._freed: dict[int, tuple[SGLangClient, list[str]]] = {}

    async def release(self) -> bool:
        """Have every server free all its memory, and return whether they did. No request may be in flight.

        The weights are gone afterwards.
        """
        if self._is_enabled:
            await asyncio.gather(*(self._release(server) for server in range(self._fleet.num_servers)))
        return self._is_enabled

    async def wake_for_weights(self) -> None:
        """Allocate the memory of the weights again, before a weight sync."""
        await asyncio.gather(*(self._resume(server, WEIGHTS) for server in list(self._freed)))

    async def wake(self) -> None:
        """Allocate all memory again, after a weight sync."""
        # After a weight sync this finds nothing to do; `load_from_hf` comes here directly.
        await self.wake_for_weights()
        await asyncio.gather(*(self._resume(server, WORK_SPACE) for server in list(self._freed)))

    async def _release(self, server: int) -> None:
        if server in self._freed or (client := self._fleet.last_client(server)) is None:
            return
        try:
            # SGLang crashes when it frees memory while it is busy, and it is busy for a moment after it has answered a
            # request. "retract" waits for that.
            await client.pause_generation("retract")
            await client.release_memory_occupation([*WORK_SPACE, *WEIGHTS])
            # A paused scheduler polls and takes a core from the trainer; an idle one sleeps. No request can reach it:
            # the engine has no weights.
            await client.continue_generation()
        except ServerUnreachableError as error:
            await self._end(server, client, error)
        else:
            self._freed[server] = (client, [*WORK_SPACE, *WEIGHTS])

    async def _resume(self, server: int, tags: tuple[str, ...]) -> None:
        client, freed = self._freed[server]
        if self._fleet.last_client(server) is not client:
            # The server restarted meanwhile, so it has all its memory.
            del self._freed[server]
            return
        wanted = [tag for tag in tags if tag in freed]
        try:
            if wanted:
                await client.resume_memory_occupation(wanted)
            freed[:] = [tag for tag in freed if tag not in wanted]
            if not freed:
                del self._freed[server]
        except ServerUnreachableError as error:
            self._freed.pop(server, None)
            await self._end(server, client, error)

    async def _end(self, server: int, client: SGLangClient, error: ServerUnreachableError) -> None:
        if not await self._fleet.restart(server, client):
            raise EngineError(
                f"SGLang server {server} may hold memory or not ({error}): restart it, then the run"
            ) from error
