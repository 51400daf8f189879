"""Qwen3-MoE: the layers that have experts, their sizes, and files that are refused."""

import pytest
import transformers

from megatron_prime.hf.config_json import shape_fields
from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import make_config


def test_layers_without_experts():
    def dense_layers(**changes):
        config = make_config("qwen3_moe", num_hidden_layers=6, mlp_only_layers=None)
        return shape_fields(config | changes)["dense_layers"]

    assert dense_layers() == ()
    assert dense_layers(mlp_only_layers=[0, 3]) == (0, 3)
    assert dense_layers(decoder_sparse_step=2) == (0, 2, 4)
    assert dense_layers(decoder_sparse_step=3, mlp_only_layers=[5]) == (0, 1, 3, 4, 5)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_layers_without_experts_are_those_of_transformers(step):
    config = make_config("qwen3_moe", num_hidden_layers=6, mlp_only_layers=[3], decoder_sparse_step=step)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    )
    expected = tuple(i for i, layer in enumerate(model.model.layers) if not hasattr(layer.mlp, "experts"))
    assert shape_fields({"model_type": "qwen3_moe", **config})["dense_layers"] == expected


def test_sizes_of_experts():
    shape = ModelShape.from_hf_config(make_config("qwen3_moe"))
    assert (shape.num_experts, shape.num_experts_per_tok, shape.moe_ffn_hidden_size) == (4, 2, 8)
    assert shape.norm_topk_prob
    assert not ModelShape.from_hf_config(make_config("qwen3_moe_mixed")).norm_topk_prob


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 8}, "sliding window"),
        ({"norm_topk_prob": None}, "lacks norm_topk_prob"),
        ({"moe_intermediate_size": None}, "lacks moe_intermediate_size"),
    ],
)
def test_an_unsupported_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shape_fields(make_config("qwen3_moe", **changes))
