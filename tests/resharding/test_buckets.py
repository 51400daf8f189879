"""Buckets contain whole tensors, bound the load of every rank, and keep the order of the plan."""

from itertools import pairwise

import pytest

from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.resharding.buckets import buckets
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import LLAMA_70B, make_shape


@pytest.mark.parametrize("max_bytes", [700, 1500, 10**6])
def test_buckets_bound_every_rank_and_keep_the_order(max_bytes):
    training = TrainingLayout(tp=2, pp=2, dp=2)
    plan = plan_reshard(make_shape(), training, EngineLayout.consecutive(2, 4))
    cut = buckets(plan, max_bytes)
    assert tuple(t for bucket in cut for t in bucket.transfers) == plan.transfers
    assert [bucket.index for bucket in cut] == list(range(len(cut)))
    names = [name for bucket in cut for name in bucket.hf_names]
    assert sorted(names) == sorted(hf_tensors(plan.shape))
    for bucket in cut:
        assert {t.hf_name for t in bucket.transfers} == set(bucket.hf_names)
        assert bucket.num_bytes == sum(t.num_bytes for t in bucket.transfers)
        sent, received = {}, {}
        for t in bucket.transfers:
            sent[t.source_rank] = sent.get(t.source_rank, 0) + t.num_bytes
            received[t.engine, t.engine_tp_rank] = received.get((t.engine, t.engine_tp_rank), 0) + t.num_bytes
        assert max(received.values()) <= max_bytes
        assert max(sent.values()) <= max_bytes or len(bucket.hf_names) == 1


def test_stages_send_at_the_same_time():
    plan = plan_reshard(LLAMA_70B, TrainingLayout(tp=8, pp=4), EngineLayout.consecutive(4, 8, first_rank=32))
    cut = buckets(plan, 2 * 10**9)
    stages = [{t.source_rank // 8 for t in bucket.transfers} for bucket in cut]
    assert sum(stage == {0, 1, 2, 3} for stage in stages) >= len(cut) - 2


def test_the_error_for_a_small_bucket_has_the_needed_size():
    plan = plan_reshard(make_shape(), TrainingLayout(), EngineLayout.consecutive(1, 1))
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight: allow 606 or more"):
        buckets(plan, 600)


def loads(transfers):
    """Bytes that each rank sends and that each engine rank receives."""
    total = {}
    for t in transfers:
        for key in (("send", t.source_rank), ("receive", t.engine, t.engine_tp_rank)):
            total[key] = total.get(key, 0) + t.num_bytes
    return total


@pytest.mark.parametrize("max_bytes", [700, 1000, 1500])
def test_a_bucket_ends_only_where_the_next_tensor_would_not_fit(max_bytes):
    plan = plan_reshard(make_shape(), TrainingLayout(tp=2, pp=2, dp=2), EngineLayout.consecutive(2, 4))
    cut = buckets(plan, max_bytes)
    assert len(cut) > 1
    for bucket, following in pairwise(cut):
        added = loads(t for t in following.transfers if t.hf_name == following.hf_names[0])
        together = loads(bucket.transfers)
        assert any(together.get(key, 0) + num_bytes > max_bytes for key, num_bytes in added.items())


def test_a_tensor_that_one_rank_sends_to_many_engines_has_its_own_bucket():
    plan = plan_reshard(make_shape(), TrainingLayout(), EngineLayout.consecutive(4, 1, first_rank=1))
    cut = buckets(plan, 700)
    wide = [bucket for bucket in cut if "model.embed_tokens.weight" in bucket.hf_names]
    assert [bucket.hf_names for bucket in wide] == [("model.embed_tokens.weight",)]
    assert wide[0].num_bytes == 4 * 101 * 3 * 2
