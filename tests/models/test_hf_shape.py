"""What a config.json says, and what is refused by name."""

import dataclasses

import pytest
import transformers
from hf_shapes import VARIANTS, make_config, make_shape

from megatron_prime.models.hf_shape import ModelShape, RopeScaling, padded_vocab_size


def test_padded_vocab_size():
    assert padded_vocab_size(151936, 128, 1) == 151936
    assert padded_vocab_size(151936, 128, 8) == 152576
    assert make_shape(vocab_divisor=128).padded_vocab_size(2) == 256


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
        shape = ModelShape.from_hf_config(config)
        assert (shape.rope_theta, shape.rope_scaling) == (5e5, expected)
    assert ModelShape.from_hf_config(make_config()).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"unknown model_type 'gpt2'.*llama, qwen2, qwen3"),
        ({"model_type": None}, "unknown model_type None"),
        ({"vocab_size": None, "rms_norm_eps": None}, "lacks vocab_size, rms_norm_eps"),
        ({"model_type": "qwen3", "head_dim": None}, "lacks head_dim"),
        ({"model_type": "qwen2", "num_key_value_heads": None}, "lacks num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by layer type"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"head_dim": None, "hidden_size": 13}, r"hidden_size \(13\)"),
        ({"num_key_value_heads": 4}, "not a multiple of the KV heads"),
        ({"num_hidden_layers": 0}, "num_layers must be a positive integer, got 0"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelShape.from_hf_config(make_config(**changes))


def test_a_sliding_window_that_is_switched_off_is_accepted():
    off = {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}
    beyond = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    for changes in (off, beyond, {"layer_types": ["full_attention"] * 2}):
        assert ModelShape.from_hf_config(make_config("qwen2", **changes)).family == "qwen2"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_written_by_transformers_is_read(variant, tmp_path):
    config = make_config(variant)
    hf_config = transformers.AutoConfig.for_model(config.pop("model_type"), **config, rope_theta=12345.0)
    assert ModelShape.from_hf_config(hf_config.to_dict()).rope_theta == 12345.0
    assert dataclasses.replace(
        ModelShape.from_hf_config(hf_config.to_dict()), rope_theta=10000.0
    ) == ModelShape.from_hf_config(make_config(variant))
