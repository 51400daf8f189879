"""Every tensor is in one group, and groups agree with the parameters of each rank."""

import pytest

from megatron_prime.hf.mapping import hf_shards, hf_tensors
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters
from megatron_prime.resharding.tensor_groups import tensor_groups
from tests.support.plan_shapes import make_moe_shape, make_shape

CASES = {
    "dense": (make_shape(), TrainingLayout(tp=2, pp=2, vpp=2, dp=2), EngineLayout.consecutive(1, 4)),
    "tied": (make_shape(tied=True), TrainingLayout(tp=2, pp=2, vpp=2), EngineLayout.consecutive(1, 2)),
    "experts": (
        make_moe_shape(dense_layers=(2,)),
        TrainingLayout(tp=2, dp=4, pp=2, ep=4, etp=2),
        EngineLayout.consecutive(1, 4, ep=2),
    ),
    "finer engines": (make_moe_shape(), TrainingLayout(ep=2, dp=2), EngineLayout.consecutive(1, 8, ep=8)),
}
each_case = pytest.mark.parametrize("case", CASES)


@each_case
def test_every_tensor_is_in_one_group(case):
    shape = CASES[case][0]
    groups = tensor_groups(*CASES[case])
    names = [member.hf_name(group.tensor.name) for group in groups for member in group.members]
    assert len(names) == len(set(names)) and set(names) == set(hf_tensors(shape))
    for group in groups:
        for member in group.members:
            assert hf_tensors(shape)[member.hf_name(group.tensor.name)] == group.dims
        length = sum(interval.length for interval in group.intervals)
        assert length == group.dims[group.dim], "the intervals cover the tensor once"


@each_case
def test_sources_equal_the_parameters_of_each_rank(case):
    shape, training, _ = CASES[case]
    stated = {
        (
            rank,
            member.hf_name(group.tensor.name),
            i.start,
            i.length,
            member.param(source.param),
            source.local_start,
        )
        for group in tensor_groups(*CASES[case])
        for member in group.members
        for i in group.intervals
        for rank, source in i.sources.items()
    }
    held = {
        (rank, piece.hf_name, piece.hf_start, piece.length, parameter.megatron_name, piece.local_start)
        for rank in range(training.num_ranks)
        for parameter in local_parameters(shape, training, rank)
        for piece in parameter.pieces
    }
    assert stated == held


@each_case
def test_shards_equal_those_of_the_engines(case):
    shape, _, engines = CASES[case]
    for tp_rank in range(engines.tp):
        stated = {
            (member.hf_name(group.tensor.name), shard.dim, shard.hf_start, shard.length)
            for group in tensor_groups(*CASES[case])
            if (shard := group.engine_shard(shape, engines, tp_rank)) is not None
            for member in group.members
        }
        shards = hf_shards(shape, tp_size=engines.tp, tp_rank=tp_rank, ep_size=engines.ep)
        assert stated == {(s.hf_name, s.dim, s.hf_start, s.length) for s in shards}


def test_a_large_mixture_of_experts_has_few_groups():
    shape = make_moe_shape(num_layers=60, num_experts=256)
    groups = tensor_groups(shape, TrainingLayout(ep=8, dp=8), EngineLayout.consecutive(1, 16, ep=16))
    assert len(hf_tensors(shape)) > 46_000 and len(groups) < 100


@pytest.mark.parametrize(
    ("training", "engines", "message"),
    [
        (TrainingLayout(ep=3, dp=3), EngineLayout.consecutive(1, 1), "divided over ep=3"),
        (TrainingLayout(), EngineLayout.consecutive(1, 16, ep=16), "divided over ep=16"),
        (TrainingLayout(tp=16), EngineLayout.consecutive(1, 1), "8 KV heads"),
        (TrainingLayout(tp=16, etp=16), EngineLayout.consecutive(1, 1), "8 KV heads"),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(training, engines, message):
    with pytest.raises(ValueError, match=message):
        tensor_groups(make_moe_shape(), training, engines)
