"""Check what the SGLang servers of a run need."""

from collections.abc import Iterator

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.server_keys import attached_keys


def engine_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot use its SGLang servers."""
    if command in ("sft", "train_prm", "evaluate_prm") or not config.rollout.uses_servers:
        return
    try:
        attached_keys(config.rollout.sglang)
    except ValueError as error:
        yield str(error)
    if not config.rollout.starts_servers:
        return
    python = config.rollout.sglang.python
    if not python.is_file():
        yield (
            f"rollout.sglang.python = {python} does not exist: build the engine environment with `make sglang`, name "
            "its interpreter, or attach to servers by rollout.sglang.urls"
        )
