"""Every family's config.json as transformers writes it and as the hub has it; what is refused, by name."""

import dataclasses

import pytest
import transformers

from megatron_prime.hf.config_json import read_config
from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import VARIANTS, make_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"unknown model_type 'gpt2'.*llama, mixtral, qwen2, qwen3, qwen3_moe"),
        ({"model_type": None}, "unknown model_type None"),
        ({"vocab_size": None, "rms_norm_eps": None}, "lacks vocab_size, rms_norm_eps"),
        ({"model_type": "qwen3", "head_dim": None}, "lacks head_dim"),
        ({"model_type": "qwen2", "num_key_value_heads": None}, "lacks num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
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


def test_layers_without_experts():
    def dense_layers(**changes):
        config = make_config("qwen3_moe", num_hidden_layers=6, mlp_only_layers=None)
        return read_config(config | changes)["dense_layers"]

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
    assert read_config({"model_type": "qwen3_moe", **config})["dense_layers"] == expected


def test_sizes_of_experts():
    qwen, mixtral = (ModelShape.from_hf_config(make_config(name)) for name in ("qwen3_moe", "mixtral"))
    assert (qwen.num_experts, qwen.num_experts_per_tok, qwen.moe_ffn_hidden_size) == (4, 2, 8)
    assert (mixtral.num_experts, mixtral.num_experts_per_tok, mixtral.moe_ffn_hidden_size) == (4, 2, 20)
    assert qwen.norm_topk_prob and mixtral.norm_topk_prob
    assert not ModelShape.from_hf_config(make_config("qwen3_moe_mixed")).norm_topk_prob


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("mixtral", {"num_local_experts": None}, "lacks num_experts or num_local_experts"),
        ("mixtral", {"sliding_window": 8}, "sliding window"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, "sliding window"),
        ("qwen3_moe", {"norm_topk_prob": None}, "lacks norm_topk_prob"),
        ("qwen3_moe", {"moe_intermediate_size": None}, "lacks moe_intermediate_size"),
    ],
)
def test_a_mixture_that_cannot_be_served_is_refused(variant, changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(make_config(variant, **changes))
