"""SGLang servers load an HF checkpoint from files."""

import asyncio
from pathlib import Path

from megatron_prime.engines.sglang.client import ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.rollout.engine import EngineError, WeightSyncError

MAX_UPDATES = 4
"""Weight updates of one server that fails each time, before the weight sync fails."""


async def load_everywhere(fleet: Fleet, path: Path, policy_version: int) -> None:
    """Have every server load the checkpoint in `path`. Raises WeightSyncError when one can't."""
    results = await asyncio.gather(
        *(load(fleet, server, path, policy_version) for server in range(fleet.num_servers)),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, EngineError):
            raise WeightSyncError(
                f"version {policy_version} did not reach every server: {result}"
            ) from result
        if isinstance(result, BaseException):
            raise result


async def load(fleet: Fleet, server: int, path: Path, policy_version: int) -> None:
    """Have one server load the checkpoint; one that dies meanwhile is restarted by its supervisor and tried again.

    Raises:
        ServerRefusedError: the server can't load the checkpoint; it keeps serving its old weights.
        ForeignWeightsError: somebody else has replaced the weights.
        EngineError: the server dies again and again.
    """
    fault: ServerUnreachableError | None = None
    for _ in range(MAX_UPDATES):
        try:
            await _update(fleet, server, path, policy_version)
            return
        except ServerUnreachableError as error:
            fault = error
    raise EngineError(
        f"SGLang server {server} died during {MAX_UPDATES} weight updates; the last error: {fault}"
    )


async def reload(fleet: Fleet, server: int, path: Path) -> None:
    """Give a restarted server the checkpoint that the others serve.

    Tries once, since the fleet repeats the whole recovery. Raises ServerUnreachableError when the server dies again.
    """
    await _update(fleet, server, path, fleet.policy_version)


async def _update(fleet: Fleet, server: int, path: Path, policy_version: int) -> None:
    client = await fleet.client(server)
    # The call that loads the files also names the weights, so that only a process that loaded them has the name.
    name = fleet.names.new(server, policy_version)
    # SGLang flushes its prefix cache with the update, which it refuses while it is still finishing requests that it has
    # answered already. Paused by "retract" it has none.
    await client.pause_generation("retract")
    try:
        await client.update_weights_from_disk(str(path.absolute()), name)
    finally:
        await client.continue_generation()
    await confirm(fleet, server, client, name)


async def confirm(fleet: Fleet, server: int, client: SGLangClient, name: str) -> None:
    """Accept proven weights if the process at the client's address is the one that has them.

    Raises:
        ServerUnreachableError: another process answers by now, which has other weights.
        ForeignWeightsError: somebody else has replaced the weights.
    """
    served = await client.weight_version()
    if served != name:
        fleet.names.version_of(server, served)
        raise ServerUnreachableError(
            f"{client.url} states the weights {served!r} instead of {name!r} after their update: it has restarted"
        )
    fleet.names.prove(name)
