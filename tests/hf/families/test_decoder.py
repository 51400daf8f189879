"""Rows of Llama-like decoders: the flags that add or remove a parameter."""

from megatron_prime.hf.families.decoder import DENSE_DECODER


def test_optional_parameters_depend_on_a_flag():
    optional = {
        row.megatron_name.rpartition("layers.{layer}.")[2]: row.when for row in DENSE_DECODER if row.when
    }
    assert optional == {
        "self_attention.linear_qkv.bias": "qkv_bias",
        "self_attention.q_layernorm.weight": "qk_norm",
        "self_attention.k_layernorm.weight": "qk_norm",
        "self_attention.linear_proj.bias": "attention_out_bias",
        "mlp.linear_fc1.bias": "mlp_bias",
        "mlp.linear_fc2.bias": "mlp_bias",
        "output_layer.weight": "tied",
    }
