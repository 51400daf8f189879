"""Every argument of Megatron-LM core_v0.16.1 is in exactly one table.

megatron_argument_names.txt holds the names that its parser registers itself; those that it makes of TransformerConfig
are taken from that class.
"""

import dataclasses
import itertools
from pathlib import Path

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.config.faults import dotted_keys
from megatron_prime.config.megatron import arguments as tables
from megatron_prime.config.megatron.mapping import is_known
from megatron_prime.config.run import PrimeConfig

NAMES = (Path(__file__).parent / "megatron_argument_names.txt").read_text().split()


def test_every_argument_is_known():
    assert len(NAMES) > 500
    assert [name for name in NAMES if not is_known(name)] == []


def test_every_argument_made_of_a_field_is_known():
    for field in dataclasses.fields(TransformerConfig):
        named = field.metadata.get("argparse_meta", {}).get(
            "arg_names", ["--" + field.name.replace("_", "-")]
        )
        for name in named if not field.name.startswith("_") else ():
            assert is_known(name.removeprefix("--")), name


def test_other_names_are_not_known():
    assert not any(map(is_known, ("tensor-model-parallel", "log-intervall", "lrr", "", "models")))


def test_an_argument_is_in_one_table():
    names = [
        tables.MAPPED,
        dict.fromkeys(tables.CONVERTED),
        tables.MODEL,
        tables.MODEL_FLAGS,
        tables.IMPLIED,
        tables.RENAMED,
        tables.LEFT_OUT,
        tables.REFUSED,
    ]
    for left, right in itertools.combinations(names, 2):
        assert not set(left) & set(right)


def test_settings_exist():
    assert set(tables.MAPPED.values()) <= set(dotted_keys(PrimeConfig))
    assert len(set(tables.MAPPED.values())) == len(tables.MAPPED)
