"""Check the environment of a run: its name, its tools and its budgets. Nothing of it is imported."""

from collections.abc import Iterator

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.environment import SINGLE_TURN
from megatron_prime.environments.registry import environment_names, tool_names
from megatron_prime.preflight.imports import import_faults
from megatron_prime.preflight.rewards import sandbox_faults


def environment_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each fault of the environment that a command would use."""
    environment = config.environment
    if command not in ("train", "evaluate", "rollout") or not environment.is_multi_turn:
        return
    yield from _name_faults(
        "environment.name", environment.name, [SINGLE_TURN, *environment_names()], "Class"
    )
    for tool in environment.tools:
        yield from _name_faults("environment.tools", tool, tool_names(), "function")
    if "python" in environment.tools:
        yield from sandbox_faults(config.reward.code)
    if config.data.tools_field is not None:
        yield (
            f"data.tools_field = {config.data.tools_field!r}: with an environment, the prompt has the schemas of the "
            "environment's tools and not those of the row; leave it out"
        )
    yield from _budget_faults(config)


def _name_faults(key: str, name: str, known: list[str], kind: str) -> Iterator[str]:
    if ":" in name:
        yield from import_faults(key, name, kind)
    elif name not in known:
        yield f"{key} = {name!r}: known are {', '.join(sorted(known))}; one of your own is package.module:{kind}"


def _budget_faults(config: PrimeConfig) -> Iterator[str]:
    environment, longest = config.environment, config.rollout.max_response_tokens
    if environment.max_turn_tokens is not None and environment.max_turn_tokens > longest:
        yield (
            f"environment.max_turn_tokens = {environment.max_turn_tokens} exceeds rollout.max_response_tokens = "
            f"{longest}, which counts all turns and the replies between them"
        )
    # A turn, a reply and a second turn have at least one token each.
    if environment.max_turns > 1 and longest < 3:
        yield f"rollout.max_response_tokens = {longest} holds no second turn: raise it, or lower environment.max_turns"
