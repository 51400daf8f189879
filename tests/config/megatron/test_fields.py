"""Fields read from megatron-core's source, against the classes themselves."""

import dataclasses
import json
import typing

import pytest
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig
from pydantic import ConfigDict, TypeAdapter, ValidationError

from megatron_prime.config.megatron.fields import CLASSES, accepts, in_words, is_settable, megatron_fields
from megatron_prime.config.megatron.owned import OWNED

REAL = {"transformer": TransformerConfig, "optimizer": OptimizerConfig, "ddp": DistributedDataParallelConfig}
VALUES = (True, 0, 3, 1.5, "full", "x", ["core_attn"], [1, 2], [1, "x"], [])


@pytest.mark.parametrize("table", CLASSES)
def test_every_field_of_the_class_is_found_and_no_other(table):
    real = {field.name for field in dataclasses.fields(REAL[table]) if not field.name.startswith("_")}
    assert set(megatron_fields(table)) == real


@pytest.mark.parametrize("table", CLASSES)
def test_values_are_accepted_as_the_evaluated_types_have_them(table):
    """pydantic judges the type that Python makes of the annotation, from JSON, which has lists alone as TOML does."""
    hints = typing.get_type_hints(REAL[table])
    for name, annotation in megatron_fields(table).items():
        if name in OWNED[table] or not is_settable(annotation):
            continue
        adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
        for value in VALUES:
            assert accepts(annotation, value) == is_valid(adapter, value), (name, in_words(annotation), value)


def is_valid(adapter: TypeAdapter, value: object) -> bool:
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("table", "name", "good", "bad"),
    [
        ("transformer", "recompute_granularity", "full", "half"),
        ("transformer", "window_size", [1, 2], [1, 2, 3]),
        ("transformer", "recompute_modules", ["mlp"], [1]),
        ("optimizer", "lr", 1, "1"),
        ("ddp", "bucket_size", 3, 1.5),
    ],
)
def test_nested_types_are_accepted(table, name, good, bad):
    annotation = megatron_fields(table)[name]
    assert accepts(annotation, good) and not accepts(annotation, bad)


def test_types_without_a_toml_value_are_not_settable():
    fields = megatron_fields("transformer")
    assert not is_settable(fields["init_method"]) and not is_settable(fields["params_dtype"])
    assert not accepts(fields["params_dtype"], "float32")
