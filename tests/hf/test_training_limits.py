"""Models and layouts that cannot be trained: the reasons that both `check` and the model builder give."""

import pytest

from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.memory import RecomputeConfig
from megatron_prime.hf.training_limits import (
    ModelSplit,
    check_training,
    fp8_faults,
    recompute_faults,
    training_faults,
)
from tests.support.hf_shapes import VARIANTS, make_shape

CASES = [
    ("llama_biases", {}, {}, "has a bias in the attention output or the MLP"),
    ("qwen3_bias", {}, {}, "has a bias in the attention output or the MLP"),
    ("llama", {}, {"tensor": 4}, "parallel.tensor = 4 does not divide num_attention_heads = 6"),
    ("llama", {}, {"tensor": 3}, "parallel.tensor = 3 does not divide num_key_value_heads = 2"),
    (
        "llama",
        {"ffn_hidden_size": 21},
        {"tensor": 2},
        "parallel.tensor = 2 does not divide intermediate_size = 21",
    ),
    ("llama", {}, {"pipeline": 3}, "parallel.pipeline = 3 exceeds num_hidden_layers = 2"),
    (
        "llama",
        {},
        {"pipeline": 2, "virtual_pipeline": 2},
        "parallel.pipeline * virtual_pipeline = 4 exceeds num_hidden_layers = 2",
    ),
    ("llama", {}, {"pipeline": 2, "layers_per_stage": (2, 1)}, "adds up to 3 layers"),
    (
        "qwen3_moe",
        {"num_layers": 3, "dense_layers": (0, 1)},
        {"pipeline": 2, "layers_per_stage": (2, 1)},
        "stage 0 would have no layer with experts",
    ),
    ("llama", {}, {"expert": 2}, "parallel.expert = 2, expert_tensor = 1: the model has no experts"),
    ("mixtral", {}, {"tensor": 2}, "needs parallel.sequence_parallel = true"),
    ("mixtral", {}, {"expert": 3}, "parallel.expert = 3 does not divide the number of experts = 4"),
    ("mixtral", {}, {"expert_tensor": 3}, "does not divide the experts' intermediate size = 20"),
    ("mixtral", {"num_experts_per_tok": 1}, {}, "chooses one expert per token"),
    ("qwen3_moe", {"dense_layers": (0,)}, {"pipeline": 2}, "stage 0 would have no layer with experts"),
]


@pytest.mark.parametrize(("variant", "changes", "sizes", "reason"), CASES)
def test_the_error_names_each_limit(variant, changes, sizes, reason):
    shape, split = make_shape(variant, **changes), ModelSplit(**sizes)
    faults = list(training_faults(shape, split))
    assert any(reason in fault for fault in faults), faults
    with pytest.raises(ValueError, match=r"parallel|not supported") as caught:
        check_training(shape, split)
    assert str(caught.value).splitlines() == faults


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"llama_biases", "qwen3_bias"}))
def test_every_family_can_be_trained_on_one_process(variant):
    check_training(make_shape(variant), ModelSplit())


def test_experts_need_no_tensor_parallel_ffn_unless_some_layers_are_dense():
    split = ModelSplit(tensor=2, sequence_parallel=True)
    check_training(make_shape("mixtral", ffn_hidden_size=21), split)
    (fault,) = training_faults(make_shape("qwen3_moe_mixed", ffn_hidden_size=21), split)
    assert "intermediate_size = 21" in fault


def test_sizes_are_those_of_the_configuration():
    parallel = ParallelConfig(tensor=2, pipeline=4, virtual_pipeline=2, expert=3, sequence_parallel=True)
    assert ModelSplit.of(parallel) == ModelSplit(2, 4, 2, 3, 1, True)
    given = ParallelConfig(pipeline=2, stage_layers=(3, 1))
    assert ModelSplit.of(given) == ModelSplit(pipeline=2, layers_per_stage=(3, 1))


def test_delayed_scales_are_refused_for_experts_only():
    fp8 = Fp8Config(policy="delayed")
    (fault,) = fp8_faults(make_shape("mixtral"), fp8, "policy")
    assert fault.startswith("fp8.policy = 'delayed' cannot be combined with the experts")
    assert not list(fp8_faults(make_shape("mixtral"), fp8, "prm"))
    assert not list(fp8_faults(make_shape("llama"), fp8, "policy"))


@pytest.mark.parametrize(
    ("method", "num_layers", "split", "fault"),
    [
        ("uniform", 3, ModelSplit(), None),
        ("uniform", 4, ModelSplit(), "= 4 does not divide the layers of each part of the model, 6"),
        ("uniform", 2, ModelSplit(pipeline=2), "does not divide the layers of each part of the model, 3"),
        ("uniform", 3, ModelSplit(pipeline=2), None),
        ("uniform", 2, ModelSplit(pipeline=2, layers_per_stage=(4, 2)), None),
        ("uniform", 2, ModelSplit(pipeline=2, layers_per_stage=(5, 1)), "each part of the model, 1, 5"),
        ("block", 4, ModelSplit(pipeline=2, layers_per_stage=(4, 2)), None),
        ("block", 5, ModelSplit(pipeline=2, layers_per_stage=(4, 2)), "exceeds the 4 layers of a pipeline"),
    ],
)
def test_layers_are_recomputed_in_groups_that_every_part_of_the_model_has(method, num_layers, split, fault):
    recompute = RecomputeConfig(granularity="full", method=method, num_layers=num_layers)
    faults = list(recompute_faults(make_shape("llama", num_layers=6), split, recompute))
    assert not faults if fault is None else len(faults) == 1 and fault in faults[0]
