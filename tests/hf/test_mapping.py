"""Compares the mapping with transformers' models and hand-written fused layouts, and with its own inverse."""

import subprocess
import sys

import pytest
import torch
import transformers

from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.mapping import (
    ExpertShare,
    ModelShape,
    Piece,
    hf_shards,
    hf_tensors,
    parameters_of,
)
from tests.support.hf_shapes import VARIANTS, import_rank, make_config, make_shape, random_hf


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_are_those_that_transformers_writes(variant, tmp_path):
    config = make_config(variant)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    )
    model.save_pretrained(tmp_path)
    reader = HFCheckpointReader(tmp_path)
    expected = {name: reader.shape_of(name) for name in reader.tensor_names}
    assert hf_tensors(ModelShape.from_hf_config(make_config(variant))) == expected


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
def test_the_end_stages_hold_the_embedding_and_the_output_layer(first, last, tied, present):
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


def test_engine_shards_of_kv_heads_and_vocabulary():
    by_name = {s.hf_name: s for s in hf_shards(make_shape(), tp_size=1, tp_rank=0)}
    assert {name: s.length for name, s in by_name.items()} == {
        name: dims[by_name[name].dim] for name, dims in hf_tensors(make_shape()).items()
    }
    shape = make_shape(num_attention_heads=8)
    shards = [{s.hf_name: s for s in hf_shards(shape, tp_size=4, tp_rank=rank)} for rank in range(4)]
    assert [s["model.layers.1.self_attn.k_proj.weight"].hf_start for s in shards] == [0, 0, 4, 4]
    assert [s["lm_head.weight"].length for s in shards] == [16, 16, 5, 0]


WHOLE_STAGE = {"tp_size": 1, "tp_rank": 0, "is_first_stage": True, "is_last_stage": True}


@pytest.mark.parametrize(
    ("variant", "names"), [("qwen3_moe", "gate_proj up_proj down_proj"), ("mixtral", "w1 w3 w2")]
)
@pytest.mark.parametrize("style", ["sequential", "grouped"])
def test_experts_are_renumbered_within_their_rank_and_split_within_each(variant, names, style):
    shape = make_shape(variant)
    tensors = random_hf(shape)
    gate, up, down = names.split()
    moe = "model.layers.1." + ("mlp" if variant == "qwen3_moe" else "block_sparse_moe")
    half = shape.moe_ffn_hidden_size // 2
    for ep_rank in range(2):
        parameters, named = import_rank(
            shape,
            tensors,
            layers=range(1, 2),
            experts=ExpertShare(2, ep_rank, 2, 1),
            expert_style=style,
            **WHOLE_STAGE,
        )
        layer = "decoder.layers.0.mlp."
        assert torch.equal(named[layer + "router.weight"], tensors[f"{moe}.gate.weight"])
        for local, expert in enumerate(range(ep_rank * 2, ep_rank * 2 + 2)):
            own = {name: tensors[f"{moe}.experts.{expert}.{name}.weight"] for name in (gate, up, down)}
            fc1, fc2 = (
                f"{layer}experts.local_experts.{local}.linear_fc{number}.weight"
                if style == "sequential"
                else f"{layer}experts.linear_fc{number}.weight{local}"
                for number in (1, 2)
            )
            assert torch.equal(named[fc1], torch.cat([own[gate][half:], own[up][half:]]))
            assert torch.equal(named[fc2], own[down][:, half:])
        assert sum("expert" in p.megatron_name for p in parameters) == 4
        assert all(p.is_expert == ("expert" in p.megatron_name) for p in parameters)


def test_dense_layers_of_a_mixture_are_dense():
    parameters = parameters_of(make_shape("qwen3_moe_mixed"), layers=range(2), norm_style="te", **WHOLE_STAGE)
    names = {p.megatron_name for p in parameters}
    assert "decoder.layers.1.mlp.linear_fc1.weight" in names
    assert "decoder.layers.1.mlp.linear_fc1.layer_norm_weight" in names
    assert "decoder.layers.0.mlp.linear_fc1.weight" not in names
    assert "decoder.layers.0.pre_mlp_layernorm.weight" in names  # not fused before a router


def test_chunks_of_a_virtual_pipeline_count_layers_each_from_zero():
    shape = make_shape(num_layers=4)
    stage = {"tp_size": 1, "tp_rank": 0, "layers": (range(0, 1), range(2, 3))}
    first = parameters_of(shape, **stage, is_first_stage=True, is_last_stage=False)
    assert first[0].megatron_name == "0.embedding.word_embeddings.weight"
    last = parameters_of(
        shape, **(stage | {"layers": (range(1, 2), range(3, 4))}), is_first_stage=False, is_last_stage=True
    )
    assert last[-1].megatron_name == "1.output_layer.weight"
    layer_of = {
        p.megatron_name: p.pieces[0].hf_name for p in (*first, *last) if "input_layernorm" in p.megatron_name
    }
    assert layer_of == {
        f"{chunk}.decoder.layers.0.input_layernorm.weight": f"model.layers.{chunk * 2 + 1}.input_layernorm.weight"
        for chunk in range(2)
    }
    assert sum(len(p.pieces) for p in first) == sum(len(p.pieces) for p in last) - 1  # the final norm


def test_engine_shards_of_experts():
    """SGLang orders its ranks by blocks: the consecutive ranks of a block split its experts."""
    shape = make_shape("qwen3_moe", num_query_groups=2, num_attention_heads=8)
    for tp_rank in range(4):
        shards = {s.hf_name: s for s in hf_shards(shape, tp_size=4, tp_rank=tp_rank, ep_size=2)}
        held = [
            expert for expert in range(4) if f"model.layers.0.mlp.experts.{expert}.up_proj.weight" in shards
        ]
        assert held == [[0, 1], [0, 1], [2, 3], [2, 3]][tp_rank]
        up = shards[f"model.layers.1.mlp.experts.{held[1]}.up_proj.weight"]
        down = shards[f"model.layers.1.mlp.experts.{held[1]}.down_proj.weight"]
        assert (up.dim, up.hf_start, up.length) == (0, tp_rank % 2 * 4, 4)
        assert (down.dim, down.hf_start, down.length) == (1, tp_rank % 2 * 4, 4)
        assert shards["model.layers.0.mlp.gate.weight"].length == 4
    assert len(hf_shards(shape, tp_size=1, tp_rank=0)) == len(hf_tensors(shape))


@pytest.mark.parametrize(
    ("variant", "experts", "message"),
    [
        ("qwen3_moe", (3, 0), "4 experts of 8 columns cannot be divided over ep=3"),
        ("qwen3_moe", (1, 0, 3, 0), "split over etp=3"),
        ("llama", (2, 0), "llama model has no experts"),
        ("qwen3_moe", (2, 2), r"ep_rank 2 is outside \[0, 2\)"),
        ("qwen3_moe", (1, 0, 0, 0), "etp_rank 0 is outside"),
    ],
)
def test_experts_that_cannot_be_divided_are_refused(variant, experts, message):
    with pytest.raises(ValueError, match=message):
        parameters_of(make_shape(variant), layers=range(2), experts=ExpertShare(*experts), **WHOLE_STAGE)


def test_a_mixture_without_dense_layers_ignores_the_dense_size():
    shape = make_shape("qwen3_moe", ffn_hidden_size=7)
    assert parameters_of(shape, **(WHOLE_STAGE | {"tp_size": 2}), layers=range(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp_size": 4}, "2 KV heads cannot be split over 4"),
        ({"tp_size": 0}, "must be positive"),
        ({"tp_rank": 1}, "tp_rank 1 is outside"),
        ({"layers": range(1, 4)}, "not a part of the model's 2 layers"),
        ({"norm_style": "apex"}, "norm_style 'apex'"),
        ({"expert_style": "legacy"}, "expert_style 'legacy'"),
        ({"layers": (range(0, 1), range(1, 3))}, "not a part"),
    ],
)
def test_an_impossible_layout_is_refused(changes, message):
    where = {"tp_size": 1, "tp_rank": 0, "layers": range(2), "is_first_stage": True, "is_last_stage": True}
    with pytest.raises(ValueError, match=message):
        parameters_of(make_shape(), **(where | changes))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"tp_size": 5, "tp_rank": 0}, "cannot split a vocabulary of 37"),
        ({"tp_size": 4, "tp_rank": 0}, "num_attention_heads is 6"),
        ({"tp_size": 2, "tp_rank": 2}, "outside"),
        ({"tp_size": 2, "tp_rank": 0, "ep_size": 4}, "ep=4 must divide its tp=2"),
    ],
)
def test_an_impossible_engine_is_refused(where, message):
    with pytest.raises(ValueError, match=message):
        hf_shards(make_shape(), **where)


def test_the_mapping_imports_no_framework():
    code = (
        "import megatron_prime.hf.mapping, sys;"
        "print(sorted({'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
