"""Qwen2: biases of the projections, and windows that its files contain but do not use."""

from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import make_config


def test_only_query_key_and_value_projections_have_a_bias():
    shape = ModelShape.from_hf_config(make_config("qwen2", attention_bias=False))
    assert shape.qkv_bias and not shape.attention_out_bias and not shape.mlp_bias and not shape.qk_norm


def test_a_sliding_window_that_is_switched_off_is_accepted():
    off = {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}
    beyond = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    for changes in (off, beyond, {"layer_types": ["full_attention"] * 2}):
        assert ModelShape.from_hf_config(make_config("qwen2", **changes)).family == "qwen2"
