"""Qwen3: normalized queries and keys, and one switch for all biases of the attention."""

from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import make_config


def test_queries_and_keys_are_normalized():
    assert ModelShape.from_hf_config(make_config("qwen3")).qk_norm


def test_the_switch_sets_all_biases_of_the_attention():
    plain, biased = (ModelShape.from_hf_config(make_config(name)) for name in ("qwen3", "qwen3_bias"))
    assert not plain.qkv_bias and not plain.attention_out_bias
    assert biased.qkv_bias and biased.attention_out_bias and not biased.mlp_bias
