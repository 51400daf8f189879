"""Llama: key-value heads default to the query heads, biases to none."""

from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import make_config


def test_files_without_key_value_heads_have_one_per_query_head():
    shape = ModelShape.from_hf_config(make_config("llama", num_key_value_heads=None))
    assert shape.num_query_groups == shape.num_attention_heads


def test_biases_are_switches_of_the_file():
    plain, biased = (ModelShape.from_hf_config(make_config(name)) for name in ("llama", "llama_biases"))
    assert not (plain.qkv_bias or plain.attention_out_bias or plain.mlp_bias)
    assert biased.qkv_bias and biased.attention_out_bias and biased.mlp_bias
