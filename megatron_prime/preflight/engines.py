"""Check what the SGLang servers that a run starts need."""

from collections.abc import Iterator

from megatron_prime.config.run import PrimeConfig


def engine_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot start its SGLang servers."""
    if command in ("sft", "evaluate_prm") or not config.rollout.starts_servers:
        return
    python = config.rollout.sglang.python
    if not python.is_file():
        yield (
            f"rollout.sglang.python = {python} does not exist: build the engine environment with `make sglang`, name "
            "its interpreter, or attach to servers by rollout.sglang.urls"
        )
