"""Blocks from real layouts, put together, equal the HF tensors bit by bit."""

from collections import Counter

import pytest
import torch

from tests.resharding.resharding_worker import CASES, LARGEST_TENSOR_BYTES
from tests.support.layout_worker import hf_weights, whole_tensors

each_layout_and_model = pytest.mark.parametrize("key", CASES, ids=": ".join)


def assert_whole(blocks_by_rank, weights):
    """Check that every element was delivered exactly once."""
    count = Counter()
    for blocks in blocks_by_rank:
        for name, _, _, tensor in blocks:
            count[name] += tensor.numel()
    assert count == {name: tensor.numel() for name, tensor in weights.items()}
    for name, tensor in whole_tensors(blocks_by_rank, weights).items():
        assert torch.equal(tensor, weights[name]), name


def flat(buckets):
    return [block for bucket in buckets for block in bucket]


@pytest.fixture
def deliveries(key, resharded):
    return [of_rank["deliveries"] for of_rank in resharded[key]]


@pytest.fixture
def weights(key, resharded_models):
    return hf_weights(resharded_models[key[1]][0][1])


@each_layout_and_model
def test_one_engine_gets_every_tensor_and_no_other_rank_anything(deliveries, weights):
    for target, engine in ((0, "first"), (len(deliveries) - 1, "last")):
        assert_whole([flat(deliveries[target][engine])], weights)
        for rank, of_rank in enumerate(deliveries):
            assert rank == target or not flat(of_rank[engine])


@each_layout_and_model
def test_an_engine_on_two_ranks_gets_its_halves(deliveries, weights):
    norms = {name for name in weights if name.endswith(("norm.weight", ".gate.weight"))}
    halves = [flat(of_rank["split"]) for of_rank in deliveries]
    assert not any(halves[2:])
    split_weights = {name: tensor for name, tensor in weights.items() if name not in norms}
    assert_whole([[block for block in half if block[0] not in norms] for half in halves[:2]], split_weights)
    for half in halves[:2]:
        assert_whole([[block for block in half if block[0] in norms]], {n: weights[n] for n in norms})


@each_layout_and_model
def test_small_buckets_deliver_the_same_in_bounded_pieces(deliveries, weights):
    small = deliveries[0]["small"]
    assert_whole([flat(small)], weights)
    assert len(small) > len(deliveries[0]["first"]) == 1
    for of_rank in deliveries:
        assert len(of_rank["small"]) == len(small), "all ranks take part in every bucket"
    for bucket in small:
        assert sum(tensor.nbytes for _, _, _, tensor in bucket) <= LARGEST_TENSOR_BYTES


@each_layout_and_model
def test_a_tensor_comes_in_one_bucket(deliveries):
    places = {
        (name, index) for index, bucket in enumerate(deliveries[0]["small"]) for name, _, _, _ in bucket
    }
    assert len(places) == len({name for name, _ in places})


@each_layout_and_model
def test_a_bucket_too_small_for_a_tensor_is_refused(deliveries):
    for of_rank in deliveries:
        assert "too small for model.embed_tokens.weight" in of_rank["refused"]


@each_layout_and_model
def test_weights_are_cast_at_the_source(deliveries, weights):
    blocks = flat(deliveries[0]["bf16"])
    assert {tensor.dtype for _, _, _, tensor in blocks} == {torch.bfloat16}
    assert_whole([blocks], {name: tensor.bfloat16() for name, tensor in weights.items()})


@each_layout_and_model
def test_delivering_twice_is_delivering_the_same(deliveries, weights):
    assert_whole([flat(deliveries[0]["again"])], weights)
