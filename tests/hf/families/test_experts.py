"""Rows and sizes of mixtures of experts."""

import pytest

from megatron_prime.hf.families.experts import expert_rows, read_num_experts


def test_experts_are_named_as_the_family_names_them():
    names = [tensor.name for row in expert_rows("moe", gate="g", up="u", down="d") for tensor in row.tensors]
    assert names == [
        "model.layers.{layer}.post_attention_layernorm.weight",
        "moe.gate.weight",
        "moe.experts.{expert}.g.weight",
        "moe.experts.{expert}.u.weight",
        "moe.experts.{expert}.d.weight",
    ]


def test_the_number_of_experts_has_two_names():
    assert read_num_experts({"num_experts": 3}) == read_num_experts({"num_local_experts": 3}) == 3
    with pytest.raises(ValueError, match="of the x model lacks num_experts or num_local_experts"):
        read_num_experts({"model_type": "x"})
