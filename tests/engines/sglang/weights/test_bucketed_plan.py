"""Both ends list each slice once and in the same order, in buckets that are small enough."""

import json
import math
from collections import defaultdict

import pytest

from megatron_prime.engines.sglang.loader.receiver import _parse_layout
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan, bucket_of_names
from megatron_prime.hf.mapping import hf_shards, hf_tensors
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_moe_shape, make_shape

CASES = {
    "dense": (make_shape(), TrainingLayout(tp=2, pp=2, dp=2), 2, 4, 1),
    "dense, fewer engine ranks": (make_shape(), TrainingLayout(tp=4, vpp=2, pp=2), 1, 2, 1),
    "experts": (make_moe_shape(), TrainingLayout(tp=2, dp=2, ep=2), 2, 4, 2),
}


def layout_of(plan, engine, tp_rank):
    """Return a target's layout as its receiver parses it."""
    return _parse_layout(json.loads(json.dumps(plan.incoming(engine, tp_rank))))


def bucketed(case, max_bytes=800):
    shape, training, num_engines, engine_tp, engine_ep = CASES[case]
    engines = EngineLayout.consecutive(num_engines, engine_tp, ep=engine_ep, first_rank=training.num_ranks)
    return BucketedPlan(plan_reshard(shape, training, engines, bytes_per_element=2), max_bytes, "bfloat16")


@pytest.mark.parametrize("case", CASES)
def test_senders_and_receivers_list_the_same_slices_in_the_same_order(case):
    plan = bucketed(case)
    sent = defaultdict(list)
    for rank in range(plan.reshard.training.num_ranks):
        for bucket in plan.outgoing(rank):
            for target, transfers in bucket.items():
                sent[target, rank] += [
                    (t.hf_name, t.dim, t.target_start, t.length, t.num_bytes // 2) for t in transfers
                ]
    awaited = defaultdict(list)
    for engine in range(plan.reshard.engines.num_engines):
        for tp_rank in range(plan.reshard.engines.tp):
            for bucket in layout_of(plan, engine, tp_rank):
                for source, slices in bucket:
                    assert {s.dtype for s in slices} == {"bfloat16"}
                    awaited[(engine, tp_rank), source] += [s[:5] for s in slices]
    assert sent == awaited


@pytest.mark.parametrize("case", CASES)
def test_a_target_gets_every_entry_of_its_shard_once(case):
    plan = bucketed(case)
    shape, engines = plan.reshard.shape, plan.reshard.engines
    for engine in range(engines.num_engines):
        for tp_rank in range(engines.tp):
            got = defaultdict(list)
            for bucket in layout_of(plan, engine, tp_rank):
                for _, slices in bucket:
                    for s in slices:
                        got[s.hf_name] += range(s.start, s.start + s.length)
            shards = hf_shards(shape, tp_size=engines.tp, tp_rank=tp_rank, ep_size=engines.ep)
            wanted = {shard.hf_name: list(range(shard.length)) for shard in shards if shard.length}
            assert {name: sorted(rows) for name, rows in got.items()} == wanted


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_bytes", [1, 300, 800, 10**9])
def test_a_bucket_is_small_or_one_tensor(case, max_bytes):
    plan = bucketed(case).reshard
    buckets = bucket_of_names(plan, max_bytes)
    assert sorted(buckets) == sorted(hf_tensors(plan.shape))
    numbers = [buckets[name] for name in plan.hf_names]
    assert numbers == sorted(numbers) and set(numbers) == set(range(max(numbers) + 1))
    loads, names = defaultdict(int), defaultdict(set)
    for t in plan.transfers:
        loads[buckets[t.hf_name], t.engine, t.engine_tp_rank] += t.num_bytes
        names[buckets[t.hf_name]].add(t.hf_name)
    assert all(load <= max_bytes or len(names[key[0]]) == 1 for key, load in loads.items())
    assert max_bytes < 10**9 or set(numbers) == {0}


def test_targets_share_the_list_of_slices_and_differ_in_their_sources():
    plan = bucketed("dense")
    first, second = plan.incoming(0, 1), plan.incoming(1, 1)
    assert first["slices"] is second["slices"] and first["slices"] != plan.incoming(0, 0)["slices"]
    assert first["sources"] != second["sources"]
    assert len(first["sources"]) == len(plan.reshard.received_by(0, 1))


def test_the_size_of_a_bucket_must_be_positive():
    with pytest.raises(ValueError, match="max_bytes = 0 must be positive"):
        bucket_of_names(bucketed("dense").reshard, 0)


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_quantized_weights_are_values_and_scales_on_both_ends(name):
    wide = {
        "hidden_size": 256,
        "ffn_hidden_size": 1024,
        "num_attention_heads": 8,
        "num_query_groups": 4,
        "head_dim": 128,
    }
    shape = make_shape(**wide) if name == "dense" else make_moe_shape(**wide, moe_ffn_hidden_size=512)
    training = TrainingLayout(tp=2, dp=2, ep=2) if name == "experts" else TrainingLayout(tp=2, pp=2)
    reshard = plan_reshard(shape, training, EngineLayout.consecutive(1, 2, first_rank=4), bytes_per_element=2)
    plan = BucketedPlan(reshard, 10**6, "bfloat16", is_quantized=True)
    dims = hf_tensors(shape)
    linear = {n for n in dims if n.endswith("_proj.weight")}
    assert set(plan.quantized_sizes) == linear
    for tp_rank in (0, 1):
        rows = [row for bucket in layout_of(plan, 0, tp_rank) for _, part in bucket for row in part]
        elements = defaultdict(int)
        for named, _, start, length, num_elements, dtype in rows:
            is_scale = named.endswith("_scale_inv")
            of_weight = named.removesuffix("_scale_inv")
            assert dtype == ("float32" if is_scale else "float8_e4m3fn" if named in linear else "bfloat16")
            assert start >= 0 and length > 0
            elements[named] += num_elements
            assert not is_scale or of_weight in linear
        for shard in hf_shards(shape, tp_size=2, tp_rank=tp_rank):
            num_other = math.prod(dims[shard.hf_name]) // dims[shard.hf_name][shard.dim]
            assert elements[shard.hf_name] == shard.length * num_other
            if shard.hf_name in linear:
                scales = -(-shard.length // 128) * -(-num_other // 128)
                assert elements[f"{shard.hf_name}_scale_inv"] == scales
    for transfer in reshard.sent_by(0):
        sizes = plan.sizes_of(transfer)
        assert len(sizes) == 1 + (transfer.hf_name in linear)
        assert sum(sizes) <= transfer.num_bytes


def test_slices_that_cut_blocks_are_refused_before_anything_is_sent():
    plan = plan_reshard(make_shape(), TrainingLayout(tp=2), EngineLayout.consecutive(1, 2, first_rank=2))
    with pytest.raises(ValueError, match="cannot be quantized in 128x128 blocks"):
        BucketedPlan(plan, 800, "bfloat16", is_quantized=True)
