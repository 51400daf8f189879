"""Every row, split over any number of ranks, covers its tensors exactly once, apart from replicas."""

import pytest

from megatron_prime.hf.families.table import Placement, TensorLayout
from megatron_prime.hf.layouts import dims_of, parameter_template, rows_of, shard_template
from tests.support.hf_shapes import VARIANTS, make_shape


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tp_size", [1, 2])
def test_the_ranks_parameters_cover_each_tensor_once(variant, tp_size):
    shape = make_shape(variant)
    for row in rows_of(shape):
        num_owners = 1 if row.layout is TensorLayout.REPLICATED else tp_size
        covered = {
            tensor.name: [0] * dims_of(shape, tensor)[tensor.parallel_dim or 0] for tensor in row.tensors
        }
        for tp_rank in range(num_owners):
            template = parameter_template(shape, row, tp_size, tp_rank)
            assert template.is_expert == (row.placement is Placement.EXPERT)
            ends = 0
            for piece in sorted(template.pieces, key=lambda piece: piece.local_start):
                assert piece.local_start == ends, "pieces stand side by side in the parameter"
                ends += piece.length
                for index in range(piece.hf_start, piece.hf_start + piece.length):
                    covered[piece.hf_name][index] += 1
            assert ends <= template.shape[row.tensors[0].parallel_dim or 0]
        assert all(set(counts) == {1} for counts in covered.values()), covered


def test_styles_choose_the_name():
    shape = make_shape("qwen3_moe_mixed")
    names = {
        style: [parameter_template(shape, row, 1, 0, *style).megatron_name for row in rows_of(shape)]
        for style in (("local", "sequential"), ("te", "sequential"), ("local", "grouped"))
    }
    plain = names["local", "sequential"]
    fused = set(names["te", "sequential"]) - set(plain)
    assert {name.removeprefix("decoder.layers.{layer}.") for name in fused} == {
        "self_attention.linear_qkv.layer_norm_weight",
        "mlp.linear_fc1.layer_norm_weight",
    }
    grouped = set(names["local", "grouped"]) - set(plain)
    assert {name.removeprefix("decoder.layers.{layer}.mlp.experts.") for name in grouped} == {
        "linear_fc1.weight{expert}",
        "linear_fc2.weight{expert}",
    }


@pytest.mark.parametrize("tp_size", [1, 2])
def test_engine_shards_cover_each_tensor(tp_size):
    shape = make_shape("qwen3_moe_mixed")
    for row in rows_of(shape):
        for tensor in row.tensors:
            shards = [shard_template(shape, tensor, tp_size, tp_rank, 64) for tp_rank in range(tp_size)]
            covered = {i for shard in shards for i in range(shard.hf_start, shard.hf_start + shard.length)}
            assert covered == set(range(dims_of(shape, tensor)[shards[0].dim])), tensor.name
            assert all(shard.hf_name == tensor.name for shard in shards)
