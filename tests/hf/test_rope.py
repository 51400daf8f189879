"""Rotary settings of older and newer config files."""

import pytest

from megatron_prime.hf.rope import RopeScaling, read_rope
from tests.support.hf_shapes import make_config


def test_older_and_newer_rope_settings_are_the_same():
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    newer = make_config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3})
    older = make_config(rope_theta=5e5, rope_scaling={"type": "llama3", **llama3})
    expected = RopeScaling(8.0, 1.0, 4.0, 32)
    for config in (newer, older):
        assert read_rope(config) == (5e5, expected)
    assert read_rope(make_config()) == (10000.0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by layer type"),
    ],
)
def test_a_scaling_that_is_not_known_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_rope(make_config(**changes))
