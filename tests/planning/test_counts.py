"""Compares parameter counts with published ones, and the counts per rank with the conversion table."""

import math

import pytest

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.planning.counts import (
    forward_flops,
    imbalance,
    num_active_parameters,
    num_parameters,
    rank_parameters,
)
from megatron_prime.resharding.layouts import TrainingLayout, local_parameters
from tests.support.planned_runs import PUBLIC

PUBLISHED = {
    "Llama-3-70B": 70_553_706_496,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
}
"""Numbers of elements in the published safetensors files."""


@pytest.mark.parametrize("name", PUBLIC)
def test_counts_equal_the_published_ones(name):
    assert num_parameters(ModelShape.from_hf_config(PUBLIC[name])) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-30B-A3B", 3.3), ("Qwen3-235B-A22B", 22.1)])
def test_active_parameters_match_the_names_of_the_models(name, billions):
    found = num_active_parameters(ModelShape.from_hf_config(PUBLIC[name])) / 1e9
    assert found == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("Qwen2.5-7B", TrainingLayout(tp=4, pp=2, dp=2)),
        ("Llama-3-70B", TrainingLayout(tp=8, pp=4, vpp=2, dp=2)),
        ("Qwen3-30B-A3B", TrainingLayout(tp=2, pp=4, dp=8, ep=8)),
    ],
)
def test_a_ranks_parameters_match_the_conversion_table(name, layout):
    shape = ModelShape.from_hf_config(PUBLIC[name])
    for stage in range(layout.pp):
        parameters = local_parameters(shape, layout, stage * layout.ranks_per_stage)
        found = rank_parameters(shape, layout, stage)
        assert found.total == sum(math.prod(p.shape) for p in parameters)
        assert found.expert == sum(math.prod(p.shape) for p in parameters if p.is_expert)


def test_flops_of_a_small_model_equal_a_count_by_hand():
    config = PUBLIC["Qwen2.5-7B"] | {
        "hidden_size": 8,
        "intermediate_size": 10,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 100,
    }
    shape = ModelShape.from_hf_config(config)
    matrices = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 10
    vectors = 8 + 2 * 4 + 3 * 8  # biases and norms, which count as parameters
    assert forward_flops(shape, 1, 0, 0) == 2 * (matrices + vectors)
    assert forward_flops(shape, 0, 0, 1) == 2 * 800
    assert forward_flops(shape, 1, 100, 0) - forward_flops(shape, 1, 0, 0) == 2 * 100 * 8


def test_the_most_expensive_stage_has_the_output_layer_unless_it_has_fewer_layers():
    config = PUBLIC["Qwen2.5-7B"]
    shape = ModelShape.from_hf_config(config)
    whole, output = forward_flops(shape, 1, 0, 1), forward_flops(shape, 0, 0, 1)
    even = imbalance(shape, TrainingLayout(pp=4, layers_per_stage=(7, 7, 7, 7)), 1, 0, 1)
    assert even == pytest.approx(((whole - output) / 4 + output) / (whole / 4))
    chosen = imbalance(shape, TrainingLayout(pp=4), 1, 0, 1)
    assert chosen == pytest.approx((whole - output) * 8 / 28 / (whole / 4))
    assert 1 < chosen < even
    assert imbalance(shape, TrainingLayout(), 1, 0, 1) == 1
