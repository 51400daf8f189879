"""Rotary settings of older and newer config files, and what SGLang makes of them."""

import re

import pytest

from megatron_prime.hf.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    read_rope,
    served_rope_fault,
)
from tests.support.hf_shapes import make_config

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
YARN_ATTENTION = 1.138629436111989
"""0.1 * ln 4 + 1."""
KINDS = {
    "llama3": (LLAMA3, Llama3Scaling(8.0, 1.0, 4.0, 32)),
    "linear": ({"factor": 2}, LinearScaling(2.0)),
    "dynamic": ({"factor": 2.0}, DynamicScaling(2.0)),
    "yarn": (YARN, YarnScaling(4.0, 16, YARN_ATTENTION, YARN_ATTENTION)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_older_and_newer_rope_settings_are_the_same(kind):
    settings, expected = KINDS[kind]
    newer = make_config(rope_parameters={"rope_type": kind, "rope_theta": 5e5, **settings})
    older = make_config(rope_theta=5e5, rope_scaling={"type": kind, **settings})
    for config in (newer, older):
        assert read_rope(config) == (5e5, expected)
    assert read_rope(make_config(), default_theta=7.0) == (7.0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling of type 'longrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "lacks factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "must be at least 1"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}}, "alpha"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by layer type"),
    ],
)
def test_a_scaling_that_is_not_known_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_rope(make_config(**changes))


@pytest.mark.parametrize(
    ("kind", "settings", "fault"),
    [
        ("llama3", LLAMA3, None),
        ("linear", {"factor": 2.0}, None),
        ("yarn", YARN, None),
        ("yarn", YARN | {"mscale": 1.0, "mscale_all_dim": 0.707}, None),
        (
            "yarn",
            YARN | {"mscale": 0.5, "mscale_all_dim": 0},
            "would scale attention by 1.06931 instead of 1.13863",
        ),
        ("yarn", YARN | {"attention_factor": 1.0}, "multiply attn_factor .* by 0.878"),
        ("yarn", YARN | {"attention_factor": 1.0, "attn_factor": 1 / YARN_ATTENTION}, None),
        ("yarn", YARN | {"attn_factor": 2.0}, "would scale attention by 2.27726"),
        ("dynamic", {"factor": 2.0}, "sequences of every length"),
        ("dynamic", {"factor": 1.0}, None),
    ],
)
def test_scalings_that_sglang_computes_otherwise_are_named(kind, settings, fault):
    _, scaling = read_rope(make_config(rope_scaling={"rope_type": kind, **settings}))
    found = served_rope_fault(scaling)
    assert found is None if fault is None else re.search(fault, found)
