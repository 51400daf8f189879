"""Combine the settings of `[megatron]` with those that this project makes for megatron-core's classes."""

from typing import Any, TypeVar

from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.config.megatron.schema import MegatronConfig

T = TypeVar("T")

TABLES: dict[type, str] = {
    TransformerConfig: "transformer",
    OptimizerConfig: "optimizer",
    DistributedDataParallelConfig: "ddp",
}


def with_passthrough(kind: type[T], megatron: MegatronConfig, **ours: Any) -> T:  # noqa: ANN401
    """Return a configuration of megatron-core from our settings and the user's; the user's take precedence.

    Names and types were checked with the configuration file (config.megatron.schema). Raises ValueError when Megatron
    refuses the combination; the message names the fields that were passed through.
    """
    table = TABLES[kind]
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in getattr(megatron, table).items()
    }
    if not given:
        return kind(**ours)
    try:
        return kind(**{**ours, **given})
    except (ValueError, AssertionError, ImportError) as error:
        raise ValueError(f"[megatron.{table}] {given}: megatron-core refuses it: {error}") from error
