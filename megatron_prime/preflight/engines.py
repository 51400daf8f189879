"""Check what the SGLang servers of a run need."""

from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.server_keys import attached_keys
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.rope import served_rope_fault
from megatron_prime.hf.shape import read_shape


def engine_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot use its SGLang servers."""
    is_needed = config.rollout.uses_servers and command not in ("sft", "train_prm", "evaluate_prm")
    if not is_needed and command != "serve_prm":
        return
    try:
        attached_keys(config.rollout.sglang)
    except ValueError as error:
        yield str(error)
    if is_needed:
        yield from _overlap_faults(config)
    yield from _rope_faults({config.model.path} if is_needed else set(config.model_paths(command).values()))
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


def _rope_faults(paths: set[Path]) -> Iterator[str]:
    """Yield why servers of these models would not compute what the trainer does."""
    for path in sorted(paths):
        try:
            fault = served_rope_fault(read_shape(path).rope_scaling)
        except ModelFolderError:
            continue  # reported with the models
        if fault is not None:
            yield f"{path}: {fault}"


def _overlap_faults(config: PrimeConfig) -> Iterator[str]:
    """Yield why servers can't sample while the trainer trains, as far as the configuration says where they are.

    The first GPU of a node is always a training rank's. With others, the start of the servers decides by this rule.
    """
    settings = config.rollout.sglang
    on_gpus = config.platform.device != "cpu" and config.rollout.starts_servers
    gpus = [gpu for server in range(settings.num_servers) for gpu in settings.server_gpus(server)]
    fault = config.rollout.overlap_fault(settings.is_colocated_on(range(1), gpus if on_gpus else []))
    if fault is not None:
        yield fault
