"""Checks and Megatron settings of Transformer Engine, tested without it."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.overlap import OverlapConfig
from megatron_prime.hf.mapping import ModelShape
from megatron_prime.models.te_layers import (
    check_acceleration,
    fill_quantized,
    fp8_fault,
    lost_without,
    quantized_parts,
    te_settings,
)
from megatron_prime.parallel.platform import Platform

HOPPER, ADA, AMPERE, BLACKWELL, GEFORCE_50 = (9, 0), (8, 9), (8, 0), (10, 0), (12, 0)
CPU = Platform(torch.device("cpu"), "gloo", torch.bfloat16, timedelta(seconds=60))
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
ONE = SimpleNamespace(tensor_size=1)


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda", "expected"),
    [
        ("delayed", HOPPER, (12, 4), None),
        ("delayed", ADA, (12, 4), None),
        ("delayed", AMPERE, (12, 4), "compute capability 8.0, the recipe needs 8.9 or more"),
        ("tensorwise", HOPPER, (12, 8), None),
        ("tensorwise", None, None, "there is no GPU"),
        ("blockwise", HOPPER, (12, 9), None),
        ("blockwise", HOPPER, (13, 0), None),
        ("blockwise", HOPPER, (12, 8), "built with CUDA 12.8, the recipe needs 12.9 or newer"),
        ("blockwise", ADA, (12, 9), "needs 9.0 or more"),
        ("mxfp8", HOPPER, (13, 0), "9.0, the recipe needs 10.0 or more.*on Hopper take 'blockwise'"),
        ("mxfp8", BLACKWELL, (13, 0), None),
        ("mxfp8", GEFORCE_50, (13, 0), "less than 12.0"),
    ],
)
def test_a_recipe_is_refused_by_name_where_it_cannot_run(recipe, capability, cuda, expected):
    fault = fp8_fault(recipe, capability, cuda)
    if expected is None:
        assert fault is None
    else:
        assert fault is not None
        assert pytest.raises(ValueError, match=expected).matches(ValueError(fault))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fp8": Fp8Config(prm="tensorwise")},
            "fp8.prm = 'tensorwise' needs Transformer Engine on GPUs, but this",
        ),
        (
            {"overlap": OverlapConfig(tensor_parallel=True)},
            "overlap.tensor_parallel = true needs Transformer",
        ),
    ],
)
def test_options_that_need_transformer_engine_are_refused_without_it(options, message):
    with pytest.raises(ValueError, match=message):
        check_acceleration(ModelOptions(**options), CPU)


def test_other_options_are_accepted_without_transformer_engine():
    overlap = OverlapConfig(grad_reduce=True, param_gather=True)
    check_acceleration(ModelOptions(overlap=overlap), CPU)


def test_fp8_needs_bf16():
    platform = replace(CPU, dtype=torch.float32, layers="transformer_engine")
    with pytest.raises(ValueError, match=r"needs platform\.dtype = .bf16."):
        check_acceleration(ModelOptions(fp8=Fp8Config(policy="delayed")), platform)


def test_a_run_reports_the_features_lost_without_transformer_engine():
    assert lost_without(CPU) is None
    lost = lost_without(replace(CPU, layers_reason="it is not installed"))
    assert lost is not None and "it is not installed" in lost and "FP8" in lost
    gpu = replace(CPU, device=torch.device("cuda", 0))
    assert lost_without(replace(gpu, layers="transformer_engine")) is None
    chosen = lost_without(gpu)
    assert chosen is not None and "platform.layers = 'torch'" in chosen and "waits for the GPU" in chosen


def settings_of(config, role="policy", **options):
    return te_settings(ModelShape.from_hf_config(config), ONE, role, ModelOptions(**options))


def test_megatron_gets_the_fp8_recipe_of_the_role():
    fp8 = Fp8Config(policy="tensorwise", prm="blockwise", primary_weights=True, bf16_layers_at_end=2)
    policy, prm = (settings_of(LLAMA, role, fp8=fp8) for role in ("policy", "prm"))
    assert (policy["fp8"], policy["fp8_recipe"], policy["fp8_param"]) == ("hybrid", "tensorwise", False)
    assert (prm["fp8_recipe"], prm["fp8_param"]) == ("blockwise", True)
    assert prm["first_last_layers_bf16"] and prm["num_layers_at_end_in_bf16"] == 2
    assert prm["num_layers_at_start_in_bf16"] == 0
    assert "fp8" not in settings_of(LLAMA)


def test_experts_use_grouped_gemm():
    assert settings_of(MIXTRAL)["moe_grouped_gemm"]
    assert "moe_grouped_gemm" not in settings_of(LLAMA)


def test_delayed_scaling_of_experts_is_refused():
    with pytest.raises(ValueError, match="mix up their scales"):
        settings_of(MIXTRAL, fp8=Fp8Config(policy="delayed"))


def test_communication_overlaps_only_with_tensor_parallelism():
    overlap = OverlapConfig(tensor_parallel=True)
    assert "tp_comm_overlap" not in settings_of(LLAMA, overlap=overlap)
    shape = ModelShape.from_hf_config(LLAMA)
    split = te_settings(shape, SimpleNamespace(tensor_size=2), "policy", ModelOptions(overlap=overlap))
    assert split["tp_comm_overlap"]


def test_a_plain_tensor_is_its_own_part():
    tensor = torch.ones(2)
    assert quantized_parts(tensor) == [tensor]


def test_master_weights_start_at_the_unrounded_values_of_the_checkpoint():
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    parameter._high_precision_init_val = torch.full((4,), 7.0)
    values = torch.tensor([1.0, 2.5, -3.0, 0.1], dtype=torch.bfloat16)
    fill_quantized(parameter, values)
    assert torch.equal(parameter.detach(), values)
    assert torch.equal(parameter._high_precision_init_val, values)
