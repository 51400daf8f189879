"""Check what the SGLang servers of a run need."""

from collections.abc import Iterator

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.server_keys import attached_keys


def engine_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot use its SGLang servers."""
    is_needed = config.rollout.uses_servers and command not in ("sft", "train_prm", "evaluate_prm")
    if not is_needed and command != "serve_prm":
        return
    try:
        attached_keys(config.rollout.sglang)
    except ValueError as error:
        yield str(error)
    urls = config.rollout.sglang.urls
    if command == "serve_prm" and len(urls) not in (0, 2):
        yield (
            f"rollout.sglang.urls names {len(urls)} servers: name that of the PRM and that of the reference, in this "
            "order"
        )
    if urls:
        return
    python = config.rollout.sglang.python
    if not python.is_file():
        yield (
            f"rollout.sglang.python = {python} does not exist: build the engine environment with `make sglang`, name "
            "its interpreter, or attach to servers by rollout.sglang.urls"
        )
