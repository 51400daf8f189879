"""The mapping against transformers' own models, hand-written fused layouts, and itself there and back."""

import dataclasses
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.models.hf_convert import HFBlock, assemble_hf, export_local, import_hf
from megatron_prime.models.hf_mapping import (
    ModelShape,
    Piece,
    RopeScaling,
    hf_shards,
    hf_tensors,
    padded_vocab_size,
    parameters_of,
)

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 37,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
VARIANTS = {
    "qwen2": {"model_type": "qwen2", "hidden_size": 24},
    "qwen2_tied": {"model_type": "qwen2", "hidden_size": 24, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_bias": {"model_type": "qwen3", "attention_bias": True},
    "llama": {"model_type": "llama"},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
}


def make_config(variant="llama", **changes):
    config = SIZES | VARIANTS[variant] | changes
    return {key: value for key, value in config.items() if value is not None}


def make_shape(variant="llama", **changes):
    return dataclasses.replace(ModelShape.from_hf_config(make_config(variant), vocab_divisor=4), **changes)


def random_hf(shape):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(dims, generator=generator) for name, dims in hf_tensors(shape).items()}


def slice_reader(tensors):
    return lambda name, dim, start, length: tensors[name].narrow(dim, start, length)


def import_rank(shape, tensors, **where):
    parameters = parameters_of(shape, **where)
    named = {p.megatron_name: torch.full(p.shape, float("nan")) for p in parameters}
    import_hf(named, parameters, slice_reader(tensors))
    return parameters, named


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_are_those_of_transformers(variant):
    config = make_config(variant)
    model_type = config.pop("model_type")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(model_type, **config)
        )
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del expected["lm_head.weight"]  # state_dict lists the shared tensor under both names
    assert hf_tensors(ModelShape.from_hf_config(make_config(variant))) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_written_by_transformers_is_read(variant, tmp_path):
    config = make_config(variant)
    hf_config = transformers.AutoConfig.for_model(config.pop("model_type"), **config, rope_theta=12345.0)
    assert ModelShape.from_hf_config(hf_config.to_dict()).rope_theta == 12345.0
    assert dataclasses.replace(
        ModelShape.from_hf_config(hf_config.to_dict()), rope_theta=10000.0
    ) == ModelShape.from_hf_config(make_config(variant))


def test_fused_qkv_interleaves_by_group():
    shape = make_shape("qwen2")  # 6 query heads in 2 groups of 3, head_dim 4
    tensors = random_hf(shape)
    for tp_rank in range(2):
        _, named = import_rank(
            shape,
            tensors,
            tp_size=2,
            tp_rank=tp_rank,
            layers=range(1, 2),
            is_first_stage=False,
            is_last_stage=True,
        )
        for kind in ("weight", "bias"):
            q, k, v = (tensors[f"model.layers.1.self_attn.{name}_proj.{kind}"] for name in "qkv")
            expected = torch.cat(
                [q[tp_rank * 12 : (tp_rank + 1) * 12], k[tp_rank * 4 :][:4], v[tp_rank * 4 :][:4]]
            )
            assert torch.equal(named[f"decoder.layers.0.self_attention.linear_qkv.{kind}"], expected)


def test_fc1_is_gate_then_up_within_each_rank():
    shape = make_shape("llama_biases")
    tensors = random_hf(shape)
    _, named = import_rank(
        shape, tensors, tp_size=2, tp_rank=1, layers=range(2), is_first_stage=True, is_last_stage=True
    )
    mlp = "model.layers.0.mlp."
    for kind in ("weight", "bias"):
        expected = torch.cat([tensors[f"{mlp}gate_proj.{kind}"][10:], tensors[f"{mlp}up_proj.{kind}"][10:]])
        assert torch.equal(named[f"decoder.layers.0.mlp.linear_fc1.{kind}"], expected)
    assert torch.equal(
        named["decoder.layers.0.mlp.linear_fc2.weight"], tensors[mlp + "down_proj.weight"][:, 10:]
    )
    assert torch.equal(named["decoder.layers.0.mlp.linear_fc2.bias"], tensors[mlp + "down_proj.bias"])


def test_padded_vocabulary_rows_are_zero_and_without_piece():
    shape = make_shape("llama", vocab_divisor=16)
    tensors = random_hf(shape)
    shards = []
    for tp_rank in range(2):
        parameters, named = import_rank(
            shape,
            tensors,
            tp_size=2,
            tp_rank=tp_rank,
            layers=range(2),
            is_first_stage=True,
            is_last_stage=True,
        )
        shards.append(named["output_layer.weight"])
        assert parameters[-1].pieces == (
            Piece("lm_head.weight", 0, tp_rank * 32, 0, 32 if tp_rank == 0 else 5),
        )
    whole = torch.cat(shards)
    assert torch.equal(whole[:37], tensors["lm_head.weight"])
    assert whole[37:].count_nonzero() == 0 and len(whole) == 64


def test_a_rank_of_padding_alone_has_no_piece():
    shape = make_shape("llama", vocab_size=3)
    parameters, named = import_rank(
        shape,
        random_hf(shape),
        tp_size=2,
        tp_rank=1,
        layers=range(2),
        is_first_stage=True,
        is_last_stage=True,
    )
    assert parameters[0].pieces == ()
    assert named["embedding.word_embeddings.weight"].count_nonzero() == 0


@pytest.mark.parametrize(
    ("first", "last", "tied", "present"),
    [
        (True, True, True, {"embedding.word_embeddings.weight"}),
        (True, True, False, {"embedding.word_embeddings.weight", "output_layer.weight"}),
        (True, False, True, {"embedding.word_embeddings.weight"}),
        (False, True, True, {"output_layer.weight"}),
        (False, True, False, {"output_layer.weight"}),
        (False, False, False, set()),
    ],
)
def test_which_stage_holds_the_embedding_and_the_output_layer(first, last, tied, present):
    parameters = parameters_of(
        make_shape(tied=tied),
        tp_size=1,
        tp_rank=0,
        layers=range(1),
        is_first_stage=first,
        is_last_stage=last,
    )
    vocab = {p.megatron_name: p for p in parameters if not p.megatron_name.startswith("decoder.")}
    assert set(vocab) == present
    if tied and last and not first:
        assert vocab["output_layer.weight"].is_tied_copy
        assert vocab["output_layer.weight"].pieces[0].hf_name == "model.embed_tokens.weight"
    assert any(p.megatron_name == "decoder.final_layernorm.weight" for p in parameters) == last


def test_replication_flags():
    parameters = parameters_of(
        make_shape("qwen3_bias"),
        tp_size=2,
        tp_rank=0,
        layers=range(1),
        is_first_stage=True,
        is_last_stage=True,
    )
    replicated = {p.megatron_name.removeprefix("decoder.") for p in parameters if p.replicated_over_tp}
    assert replicated == {
        "layers.0.input_layernorm.weight",
        "layers.0.pre_mlp_layernorm.weight",
        "layers.0.self_attention.q_layernorm.weight",
        "layers.0.self_attention.k_layernorm.weight",
        "layers.0.self_attention.linear_proj.bias",
        "final_layernorm.weight",
    }


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    tp_size=st.sampled_from([1, 2]),
    cut=st.integers(0, 2),
    norm_style=st.sampled_from(["local", "te"]),
)
def test_there_and_back_is_bit_equal(variant, tp_size, cut, norm_style):
    """One pipeline stage, or two cut anywhere, at any TP: import, export and assemble change nothing."""
    shape = make_shape(variant)
    tensors = random_hf(shape)
    chunks = [range(0, 2)] if cut == 0 else [range(0, cut), range(cut, 2)]
    blocks: list[HFBlock] = []
    for stage, layers in enumerate(chunks):
        for tp_rank in range(tp_size):
            parameters, named = import_rank(
                shape,
                tensors,
                tp_size=tp_size,
                tp_rank=tp_rank,
                layers=layers,
                is_first_stage=stage == 0,
                is_last_stage=stage == len(chunks) - 1,
                norm_style=norm_style,
            )
            own = [p for p in parameters if not p.is_tied_copy and not (p.replicated_over_tp and tp_rank)]
            blocks += export_local({p.megatron_name: named[p.megatron_name] for p in own}, own)
    back = dict(assemble_hf(hf_tensors(shape), blocks))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_assemble_refuses_repeated_missing_and_unknown_blocks():
    expected, whole = {"a": (2, 2)}, torch.ones(2, 2)
    with pytest.raises(ValueError, match="a was given more than once"):
        list(assemble_hf(expected, [HFBlock("a", 0, 0, whole), HFBlock("a", 0, 0, whole)]))
    with pytest.raises(ValueError, match="1 HF tensors were not exported whole, first of them a"):
        list(assemble_hf(expected, [HFBlock("a", 1, 0, whole[:, :1])]))
    with pytest.raises(ValueError, match="b is not a tensor of this model"):
        list(assemble_hf(expected, [HFBlock("b", 0, 0, whole)]))


def test_import_refuses_another_model():
    shape = make_shape()
    parameters, named = import_rank(
        shape,
        random_hf(shape),
        tp_size=1,
        tp_rank=0,
        layers=range(2),
        is_first_stage=True,
        is_last_stage=True,
    )
    renamed = {name.replace("final_layernorm", "final_norm"): tensor for name, tensor in named.items()}
    with pytest.raises(
        ValueError, match=r"lacks \['decoder.final_layernorm.weight'\].*decoder.final_norm.weight"
    ):
        import_hf(renamed, parameters, slice_reader({}))
    named["decoder.final_layernorm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"decoder.final_layernorm.weight has shape \(3,\)"):
        list(export_local(named, parameters))


def test_engine_shards_of_kv_heads_and_vocabulary():
    by_name = {s.hf_name: s for s in hf_shards(make_shape(), tp_size=1, tp_rank=0)}
    assert {name: s.length for name, s in by_name.items()} == {
        name: dims[by_name[name].dim] for name, dims in hf_tensors(make_shape()).items()
    }
    shape = make_shape(num_attention_heads=8)
    shards = [{s.hf_name: s for s in hf_shards(shape, tp_size=4, tp_rank=rank)} for rank in range(4)]
    assert [s["model.layers.1.self_attn.k_proj.weight"].hf_start for s in shards] == [0, 0, 4, 4]
    assert [s["lm_head.weight"].length for s in shards] == [16, 16, 5, 0]


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp_size": 4}, "2 KV heads cannot be split over 4"),
        ({"tp_size": 0}, "must be positive"),
        ({"tp_rank": 1}, "tp_rank 1 is outside"),
        ({"layers": range(1, 4)}, "not a part of the model's 2 layers"),
        ({"norm_style": "apex"}, "norm_style 'apex'"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes, message):
    where = {"tp_size": 1, "tp_rank": 0, "layers": range(2), "is_first_stage": True, "is_last_stage": True}
    with pytest.raises(ValueError, match=message):
        parameters_of(make_shape(), **(where | changes))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"tp_size": 5, "tp_rank": 0}, "cannot split a vocabulary of 37"),
        ({"tp_size": 4, "tp_rank": 0}, "num_attention_heads is 6"),
        ({"tp_size": 2, "tp_rank": 2}, "outside"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(where, message):
    with pytest.raises(ValueError, match=message):
        hf_shards(make_shape(), **where)


def test_the_mapping_imports_no_framework():
    code = (
        "import megatron_prime.models.hf_mapping, sys;"
        "print(sorted({'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
