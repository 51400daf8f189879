"""The [megatron] table: settings that are passed to megatron-core unchanged."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import Field, model_validator

from megatron_prime.config.megatron.fields import accepts, in_words, is_settable, megatron_fields
from megatron_prime.config.megatron.owned import OWNED
from megatron_prime.config.section import Section

MegatronValue = bool | int | float | str | tuple[bool | int | float | str, ...]
"""A value that TOML can express."""


class MegatronConfig(Section):
    """Fields of megatron-core's configuration classes that no other option sets, by Megatron's own names.

    Names and types are checked against the installed version, without importing it.
    """

    transformer: dict[str, MegatronValue] = Field(default={})
    """Fields of TransformerConfig, for policy, PRM and reference alike, which must compute the same function."""
    optimizer: dict[str, MegatronValue] = Field(default={})
    """Fields of OptimizerConfig, for policy and PRM."""
    ddp: dict[str, MegatronValue] = Field(default={})
    """Fields of DistributedDataParallelConfig, for policy and PRM."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = [
            fault
            for table in ("transformer", "optimizer", "ddp")
            for fault in passthrough_faults(table, getattr(self, table))
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return self


def passthrough_faults(table: str, values: Mapping[str, MegatronValue]) -> Iterator[str]:
    """Yield the reason for each value that cannot be passed through."""
    if not values:
        return
    try:
        # Checking names here reports a typing error before the job starts and not when the models are built.
        fields = megatron_fields(table)
    except ValueError as error:
        yield str(error)
        return
    # Suggestions leave out the fields that would be refused as well.
    passable = [name for name in fields if name not in OWNED[table]]
    for name, value in values.items():
        key = f"megatron.{table}.{name}"
        if name not in fields:
            near = difflib.get_close_matches(name, passable, n=1, cutoff=0.6)
            yield f"unknown key {key}" + (f"; did you mean megatron.{table}.{near[0]}?" if near else "")
        elif name in OWNED[table]:
            yield f"{key} is not passed through: {OWNED[table][name]}"
        elif not is_settable(fields[name]):
            yield f"{key} takes {in_words(fields[name])}, which has no TOML value"
        elif not accepts(fields[name], value):
            yield f"{key} = {value!r}: must be {in_words(fields[name])}"
