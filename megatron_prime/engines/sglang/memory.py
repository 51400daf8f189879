"""Servers that share GPUs with the trainer: they give their memory up while it trains.

awake --release--> nothing held --wake_for_weights--> weights, without content --(a weight sync), wake--> awake
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
"""What sampling needs besides weights: worth giving up first, and needed last."""


def is_colocated(plan: LaunchPlan, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the servers of a plan give memory up: as rollout.sglang.colocated says, else as their GPUs say.

    Training ranks have the first LOCAL_WORLD_SIZE GPUs that they can see. Nothing is assumed of attached servers, and
    a CPU has one memory for all.
    """
    num_trainers = 0 if plan.device == "cpu" else int(environment.get("LOCAL_WORLD_SIZE", "1"))
    trainers = set(gpu_names(range(num_trainers), environment))
    servers = range(plan.settings.num_servers)
    return plan.settings.is_colocated_on(
        trainers, (gpu for server in servers for gpu in plan.gpus(server, environment))
    )


class ServerMemory:
    """Who has given memory up, so that nobody is asked twice: SGLang ends over a tag that it does not hold.

    Coroutines belong to the fleet's event loop. A server that gives no answer is ended: its supervisor starts it again,
    with all its memory. Of an attached one nobody knows what it did: EngineError.
    """

    def __init__(self, fleet: Fleet, is_enabled: bool) -> None:
        """All servers are awake. Unless enabled, nothing is ever asked of them."""
        self._fleet = fleet
        self._is_enabled = is_enabled
        self._given_up: dict[int, tuple[SGLangClient, list[str]]] = {}

    async def release(self) -> bool:
        """Have every server give all its memory up; whether they did. No request may be in flight.

        Their weights are gone from here on. They stay paused until `wake`.
        """
        if self._is_enabled:
            await asyncio.gather(*(self._release(server) for server in range(self._fleet.num_servers)))
        return self._is_enabled

    async def wake_for_weights(self) -> None:
        """Take memory for the weights again, before a weight sync."""
        await asyncio.gather(*(self._resume(server, WEIGHTS) for server in list(self._given_up)))

    async def wake(self) -> None:
        """Take all of it again and sample on; after a weight sync."""
        await self.wake_for_weights()
        await asyncio.gather(*(self._resume(server, WORK_SPACE) for server in list(self._given_up)))

    async def _release(self, server: int) -> None:
        if server in self._given_up or (client := self._fleet.last_client(server)) is None:
            return
        try:
            # By retraction: a request that was just answered or aborted is still wound up, and SGLang ends when it is
            # told to give memory up while it is busy.
            await client.pause_generation("retract")
            await client.release_memory_occupation([*WORK_SPACE, *WEIGHTS])
        except ServerUnreachableError as error:
            await self._end(server, client, error)
        else:
            self._given_up[server] = (client, [*WORK_SPACE, *WEIGHTS])

    async def _resume(self, server: int, tags: tuple[str, ...]) -> None:
        client, given_up = self._given_up[server]
        if self._fleet.last_client(server) is not client:
            # It was started again meanwhile, and holds all its memory.
            del self._given_up[server]
            return
        wanted = [tag for tag in tags if tag in given_up]
        try:
            if wanted:
                await client.resume_memory_occupation(wanted)
            given_up[:] = [tag for tag in given_up if tag not in wanted]
            if not given_up:
                del self._given_up[server]
                await client.continue_generation()
        except ServerUnreachableError as error:
            self._given_up.pop(server, None)
            await self._end(server, client, error)

    async def _end(self, server: int, client: SGLangClient, error: ServerUnreachableError) -> None:
        if not await self._fleet.restart(server, client):
            raise EngineError(
                f"SGLang server {server} may hold memory or not ({error}): restart it, then the run"
            ) from error
