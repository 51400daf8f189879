"""The plan, executed on arrays of element ids, against plain slicing into Megatron and engine shards."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_shapes import LLAMA_70B, make_shape

from megatron_prime.models.hf_mapping import hf_tensors
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import summary

BYTES_PER_ELEMENT = 2
UNSET, PADDING = -7, -1


SHAPES = {
    "untied": make_shape(),
    "tied": make_shape(tied=True, num_attention_heads=8),
    "qwen2": make_shape(family="qwen2", qkv_bias=True, tied=True),
    "all_biases": make_shape(qkv_bias=True, attention_out_bias=True, mlp_bias=True),
    "qwen3": make_shape(family="qwen3", qk_norm=True, vocab_size=64),
}


def element_ids(shape):
    """Every element of every HF tensor gets a number of its own."""
    ids, start = {}, 0
    for name, dims in hf_tensors(shape).items():
        count = int(np.prod(dims))
        ids[name] = np.arange(start, start + count).reshape(dims)
        start += count
    return ids


def pad_rows(array, num_rows):
    widths = [(0, num_rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, widths, constant_values=PADDING)


def fused_qkv(ids, prefix, kind, shape):
    """The whole fused QKV as Megatron sees it: [groups, queries of a group + 2, head_dim, ...]."""
    num_groups, rest = shape.num_query_groups, ids[f"{prefix}q_proj.{kind}"].shape[1:]
    q, k, v = (
        ids[f"{prefix}{name}_proj.{kind}"].reshape(num_groups, -1, shape.head_dim, *rest) for name in "qkv"
    )
    return np.concatenate([q, k, v], axis=1).reshape(-1, *rest)


def gate_up(ids, prefix, kind, tp, tp_rank):
    parts = [np.split(ids[f"{prefix}{name}_proj.{kind}"], tp)[tp_rank] for name in ("gate", "up")]
    return np.concatenate(parts)


def megatron_layer(ids, shape, layer, tp, tp_rank):
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    params = {
        "input_layernorm.weight": ids[f"model.layers.{layer}.input_layernorm.weight"],
        "pre_mlp_layernorm.weight": ids[f"model.layers.{layer}.post_attention_layernorm.weight"],
        "self_attention.linear_qkv.weight": np.split(fused_qkv(ids, attention, "weight", shape), tp)[tp_rank],
        "self_attention.linear_proj.weight": np.split(ids[attention + "o_proj.weight"], tp, axis=1)[tp_rank],
        "mlp.linear_fc1.weight": gate_up(ids, mlp, "weight", tp, tp_rank),
        "mlp.linear_fc2.weight": np.split(ids[mlp + "down_proj.weight"], tp, axis=1)[tp_rank],
    }
    if shape.qkv_bias:
        params["self_attention.linear_qkv.bias"] = np.split(fused_qkv(ids, attention, "bias", shape), tp)[
            tp_rank
        ]
    if shape.attention_out_bias:
        params["self_attention.linear_proj.bias"] = ids[attention + "o_proj.bias"]
    if shape.mlp_bias:
        params["mlp.linear_fc1.bias"] = gate_up(ids, mlp, "bias", tp, tp_rank)
        params["mlp.linear_fc2.bias"] = ids[mlp + "down_proj.bias"]
    if shape.qk_norm:
        params["self_attention.q_layernorm.weight"] = ids[attention + "q_norm.weight"]
        params["self_attention.k_layernorm.weight"] = ids[attention + "k_norm.weight"]
    return params


def megatron_rank(ids, shape, tp, pp, tp_rank, pp_rank):
    """All parameters of a Megatron rank, sliced plainly from whole tensors."""
    params = {}
    embedding = ids["model.embed_tokens.weight"]
    head = embedding if shape.tied else ids["lm_head.weight"]
    num_rows = -(-shape.vocab_size // (shape.vocab_divisor * tp)) * shape.vocab_divisor * tp
    if pp_rank == 0:
        params["embedding.word_embeddings.weight"] = np.split(pad_rows(embedding, num_rows), tp)[tp_rank]
    per_stage = shape.num_layers // pp
    for local_layer in range(per_stage):
        layer = megatron_layer(ids, shape, pp_rank * per_stage + local_layer, tp, tp_rank)
        params |= {f"decoder.layers.{local_layer}.{name}": array for name, array in layer.items()}
    if pp_rank == pp - 1:
        params["decoder.final_layernorm.weight"] = ids["model.norm.weight"]
        if not (shape.tied and pp == 1):
            params["output_layer.weight"] = np.split(pad_rows(head, num_rows), tp)[tp_rank]
    return params


def engine_shard(name, array, shape, tp, tp_rank):
    if "embed_tokens" in name or "lm_head" in name:
        shard = np.split(pad_rows(array, -(-len(array) // 64) * 64), tp)[tp_rank]
        return shard[(shard != PADDING).all(axis=1)]
    if "norm" in name or name.endswith(("o_proj.bias", "down_proj.bias")):
        return array
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return np.split(array, tp, axis=1)[tp_rank]
    if "k_proj" in name or "v_proj" in name:
        heads = np.split(array, shape.num_query_groups)
        if tp > len(heads):
            return heads[tp_rank * len(heads) // tp]
    return np.split(array, tp)[tp_rank]


def check(shape, training, engines):
    """Execute the plan; every shard must be right, written once, and the bytes the fewest possible."""
    ids = element_ids(shape)
    plan = plan_reshard(shape, training, engines, bytes_per_element=BYTES_PER_ELEMENT)
    sources = {}
    for pp_rank, dp_rank, tp_rank in itertools.product(
        range(training.pp), range(training.dp), range(training.tp)
    ):
        rank = tp_rank + training.tp * (dp_rank + training.dp * pp_rank)
        sources[rank] = megatron_rank(ids, shape, training.tp, training.pp, tp_rank, pp_rank)
    expected = {
        (engine, tp_rank, name): engine_shard(name, array, shape, engines.tp, tp_rank)
        for engine in range(engines.num_engines)
        for tp_rank in range(engines.tp)
        for name, array in ids.items()
    }
    targets = {key: np.full_like(array, UNSET) for key, array in expected.items()}
    for t in plan.transfers:
        block = sources[t.source_rank][t.source_param]
        block = np.take(block, range(t.source_local_start, t.source_local_start + t.length), axis=t.dim)
        target = targets[t.engine, t.engine_tp_rank, t.hf_name]
        window = (slice(None),) * t.dim + (slice(t.target_start, t.target_start + t.length),)
        assert (target[window] == UNSET).all(), "written twice"
        target[window] = block
        assert block.size * BYTES_PER_ELEMENT == t.num_bytes > 0
        assert t.target_rank == engines.ranks[t.engine][t.engine_tp_rank]
    for key, array in expected.items():
        np.testing.assert_array_equal(targets[key], array, err_msg=str(key))
    held = {
        rank: np.unique(np.concatenate([array.ravel() for array in params.values()]))
        for rank, params in sources.items()
    }
    fewest = sum(
        array.size - np.isin(array, held.get(engines.ranks[engine][tp_rank], ())).sum()
        for (engine, tp_rank, _), array in expected.items()
    )
    counted = summary(plan)
    assert counted.network_bytes == counted.lower_bound_bytes == fewest * BYTES_PER_ELEMENT
    assert counted.delivered_bytes == sum(array.size for array in expected.values()) * BYTES_PER_ELEMENT
    return plan


@pytest.mark.parametrize("shape_name", SHAPES)
@pytest.mark.parametrize("dp", [1, 2])
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_every_engine_gets_exactly_its_shards(tp, pp, dp, shape_name):
    training = TrainingLayout(tp=tp, pp=pp, dp=dp)
    shape = SHAPES[shape_name]
    for engine_tp in (1, 2, 4):
        num_engines = max(1, min(2, training.num_ranks // engine_tp))
        check(shape, training, EngineLayout.consecutive(num_engines, engine_tp))
        check(shape, training, EngineLayout.consecutive(2, engine_tp, first_rank=training.num_ranks))


def test_kv_heads_are_replicated_when_the_engine_has_more_ranks_than_heads():
    shape = make_shape(num_query_groups=2, num_attention_heads=16)
    for engine_tp in (4, 8, 16):
        check(shape, TrainingLayout(tp=2, pp=2), EngineLayout.consecutive(1, engine_tp))


def test_uneven_stages_and_context_parallel_replicas():
    shape = make_shape()
    training = TrainingLayout(tp=2, pp=2, cp=2, layers_per_stage=(1, 3))
    assert training.num_ranks == 8
    assert list(training.replicas(tp_rank=1, pp_rank=1)) == [5, 7]
    plan = plan_reshard(shape, training, EngineLayout.consecutive(1, 2, first_rank=8))
    senders = {t.source_rank for t in plan.transfers if t.hf_name.startswith("model.layers.1.")}
    assert senders == {4, 5, 6, 7}


@settings(max_examples=40, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([1, 2, 4]),
    dp=st.integers(1, 3),
    engine_tp=st.sampled_from([1, 2, 4, 8]),
    vocab_size=st.integers(8, 200),
    shape_name=st.sampled_from(sorted(SHAPES)),
    data=st.data(),
)
def test_any_placement_of_engines(tp, pp, dp, engine_tp, vocab_size, shape_name, data):
    training = TrainingLayout(tp=tp, pp=pp, dp=dp)
    ranks = data.draw(
        st.lists(
            st.lists(st.integers(0, training.num_ranks + 3), min_size=engine_tp, max_size=engine_tp).map(
                tuple
            ),
            min_size=1,
            max_size=3,
        ).map(tuple)
    )
    changes = {
        field: getattr(SHAPES[shape_name], field) for field in ("tied", "qkv_bias", "mlp_bias", "qk_norm")
    }
    check(make_shape(vocab_size=vocab_size, **changes), training, EngineLayout(len(ranks), engine_tp, ranks))


def test_equal_layouts_on_shared_devices_need_no_network():
    training = TrainingLayout(tp=4, dp=2)
    shape = make_shape(vocab_size=100, vocab_divisor=32)  # both sides then pad the vocabulary alike
    assert summary(check(shape, training, EngineLayout.consecutive(2, 4))).network_bytes == 0


def test_a_tied_copy_on_the_last_stage_sends_too():
    plan = plan_reshard(
        make_shape(tied=True), TrainingLayout(pp=2), EngineLayout.consecutive(2, 1, first_rank=2)
    )
    embedding = [t for t in plan.transfers if t.hf_name == "model.embed_tokens.weight"]
    assert {t.source_param for t in embedding} == {"embedding.word_embeddings.weight", "output_layer.weight"}


def test_te_names_of_norms():
    layouts = TrainingLayout(), EngineLayout.consecutive(1, 1)
    names = {t.source_param for t in plan_reshard(make_shape(), *layouts, norm_style="te").transfers}
    assert "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.3.mlp.linear_fc1.layer_norm_weight" in names
    assert not any("input_layernorm" in name or "pre_mlp" in name for name in names)


def test_planning_is_deterministic():
    layouts = TrainingLayout(tp=2, pp=2, dp=2), EngineLayout.consecutive(2, 4, first_rank=8)
    plan = plan_reshard(make_shape(), *layouts)
    assert plan == plan_reshard(make_shape(), *layouts)
    assert sorted(t for rank in range(8) for t in plan.sent_by(rank)) == sorted(plan.transfers)
    received = [t for engine in range(2) for tp_rank in range(4) for t in plan.received_by(engine, tp_rank)]
    assert sorted(received) == sorted(plan.transfers)


def test_planning_70b_on_128_devices_takes_seconds():
    start = time.perf_counter()
    plan = plan_reshard(LLAMA_70B, TrainingLayout(tp=8, pp=4, dp=4), EngineLayout.consecutive(32, 4))
    counted = summary(plan)
    assert counted.network_bytes == counted.lower_bound_bytes
    assert time.perf_counter() - start < 10  # about 1 on an idle core


def test_planning_imports_no_framework():
    code = (
        "import megatron_prime.resharding.buckets, megatron_prime.resharding.summary, sys;"
        "print(sorted({'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
