"""Model families, one file each, named after the `model_type` of config.json. Standard library only.

A module of this package that defines `FAMILY` is a supported family; a further one needs no other change unless its
layers compute something that `models.builder` cannot configure.

- `table`: the types of a family and of the rows of its parameter table
- `decoder`: rows shared by Llama-like decoders: embedding, attention, dense MLP, output layer
- `experts`: rows and sizes of mixtures of experts
- `llama`, `mistral`, `qwen2`, `qwen3`: dense families
- `qwen3_moe`, `mixtral`: mixtures of experts
"""

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType

from megatron_prime.hf.families.table import Family


def _find_families() -> Iterator[Family]:
    for module in pkgutil.iter_modules(__path__):
        # Modules such as `table` only help to define families and have no FAMILY.
        family = getattr(import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if family is not None:
            yield family


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in sorted(_find_families(), key=lambda family: family.model_type)}
)
"""Supported families by `model_type`."""
