"""Models are built from a checkpoint directory, or refused with a message that says how to fix it."""

import json
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_prime.hf.mapping import ModelShape, ParameterPieces
from megatron_prime.hf.shape import read_shape
from megatron_prime.models.builder import BuiltModel, _parameters, build_model
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from tests.models import models_worker
from tests.support.distributed_runner import run_distributed
from tests.support.layout_worker import hf_weights, whole_tensors
from tests.support.tiny_models import save_tiny_model

CPU = Platform(torch.device("cpu"), "gloo", torch.float32, timedelta(seconds=60))
ONE = Topology(
    platform=CPU,
    rank=0,
    world_size=1,
    tensor_size=1,
    tensor_rank=0,
    pipeline_size=1,
    pipeline_rank=0,
    data_size=1,
    data_rank=0,
    sequence_parallel=False,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builder") / "model"
    return folder, save_tiny_model("qwen2", folder)


def with_config(checkpoint, folder, **changes):
    folder.mkdir()
    config = json.loads((checkpoint[0] / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_tensors(checkpoint, folder, change):
    shutil.copytree(checkpoint[0], folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json; this must be the folder"):
        build_model(tmp_path, ONE)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"not a folder.*give the folder of a Hugging Face checkpoint"):
        build_model(tmp_path / "model.safetensors", ONE)


@pytest.mark.parametrize("content", ['{"model_type": ', "", "[1, 2]"])
def test_a_broken_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_shape(tmp_path)


def test_an_unknown_family_is_refused(checkpoint, tmp_path):
    folder = with_config(checkpoint, tmp_path / "m", model_type="mamba")
    with pytest.raises(ValueError, match=r"'mamba'.*known: llama, mistral, mixtral, qwen2, qwen3"):
        build_model(folder, ONE)


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_output_biases_are_refused(bias, checkpoint, tmp_path):
    folder = with_config(checkpoint, tmp_path / "m", model_type="llama", **{bias: True})
    with pytest.raises(ValueError, match="not supported yet"):
        build_model(folder, ONE)


EXPERTS = {
    "model_type": "qwen3_moe",
    "head_dim": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize(
    ("config", "layout", "words"),
    [
        ({}, {"tensor_size": 2}, "needs parallel.sequence_parallel = true"),
        (
            {"num_experts": 9},
            {"expert_size": 2},
            "parallel.expert = 2 does not divide the number of experts = 9",
        ),
        (
            {"moe_intermediate_size": 15},
            {"expert_tensor_size": 2},
            "parallel.expert_tensor = 2 does not divide the experts' intermediate size = 15",
        ),
        ({"mlp_only_layers": [0, 1, 2]}, {"pipeline_size": 2}, "stage 0 would have no layer with experts"),
        ({"num_experts_per_tok": 1}, {}, "chooses one expert per token and normalizes"),
    ],
)
def test_experts_that_a_layout_cannot_hold_are_refused(config, layout, words, checkpoint, tmp_path):
    folder = with_config(checkpoint, tmp_path / "moe", **EXPERTS | config)
    with pytest.raises(ValueError, match=words):
        build_model(folder, replace(ONE, world_size=2, **layout))


def test_expert_parallelism_of_a_dense_model_is_refused(checkpoint):
    with pytest.raises(
        ValueError, match=r"parallel\.expert = 2, expert_tensor = 1: the model has no experts"
    ):
        build_model(checkpoint[0], replace(ONE, world_size=2, expert_size=2))


def test_a_pipeline_with_more_stages_than_layers_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"parallel\.pipeline = 5 exceeds num_hidden_layers = 4"):
        build_model(checkpoint[0], replace(ONE, world_size=5, pipeline_size=5))


def test_tensor_parallelism_that_does_not_divide_the_heads_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"parallel\.tensor = 8 does not divide num_key_value_heads = 4"):
        build_model(checkpoint[0], replace(ONE, world_size=8, tensor_size=8))


def test_more_chunks_than_layers_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"pipeline \* virtual_pipeline = 6 exceeds num_hidden_layers"):
        build_model(checkpoint[0], replace(ONE, world_size=2, pipeline_size=2, virtual_size=3))


@pytest.fixture(scope="module")
def report(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("faulty")

    def misshape(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    faulty = {
        "missing": lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"),
        "misshapen": misshape,
        "unexpected": lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}),
        "inv_freq": lambda tensors: tensors.update({"model.rotary_emb.inv_freq": torch.zeros(2)}),
    }
    folders = {name: with_tensors(checkpoint, root / name, change) for name, change in faulty.items()}
    no_weights = with_config(checkpoint, root / "none")
    (result,) = run_distributed(
        models_worker.build_models, 1, checkpoint[0], folders | {"no weights": no_weights}
    )
    return result


def test_faulty_tensors_are_named(report):
    faults = report["faults"]
    assert "missing (1): model.layers.2.mlp.up_proj.weight" in faults["missing"]
    assert "model.norm.weight is (31,) and should be (32,)" in faults["misshapen"]
    assert "unexpected (1): model.extra.weight" in faults["unexpected"]
    assert "neither" in faults["no weights"]
    assert faults["inv_freq"] is None, "a buffer that old tools wrote is no fault"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_have_the_dtype_of_the_platform(name, dtype, report, checkpoint):
    assert report[name]["dtypes"] == {dtype}
    weights = {key: tensor.to(dtype) for key, tensor in hf_weights(checkpoint[1]).items()}
    for key, tensor in whole_tensors([report[name]["weights"]], weights).items():
        assert torch.equal(tensor, weights[key]), key


def test_without_load_weights_the_weights_are_random(report, checkpoint):
    weights = hf_weights(checkpoint[1])
    random = whole_tensors([report["random"]], weights)
    assert all(tensor.isfinite().all() for tensor in random.values())
    assert not torch.equal(random["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])


def test_messages_between_stages_do_not_wait_for_the_device(report):
    assert report["waits for the device"] is False


def test_dropout_is_off(report):
    assert report["dropout"] == {0.0}


MOE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "norm_topk_prob": False,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
"""Configuration of a small mixture of experts."""
NAMES_IN_TRANSFORMER_ENGINE = {
    "decoder.layers.0.input_layernorm.weight": "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
    **{
        f"decoder.layers.0.mlp.experts.local_experts.{expert}.{linear}.weight": (
            f"decoder.layers.0.mlp.experts.{linear}.weight{expert}"
        )
        for expert in (0, 1)
        for linear in ("linear_fc1", "linear_fc2")
    },
}
"""Parameter names of this model in Transformer Engine 2.11 with megatron-core 0.16.1, recorded from a real model."""


def test_parameters_have_the_same_names_with_either_kind_of_layers():
    shape = ModelShape.from_hf_config(MOE)
    plain, none = _parameters(shape, ONE, (range(1),))
    fused_platform = replace(CPU, layers="transformer_engine")
    same, renamed = _parameters(shape, replace(ONE, platform=fused_platform), (range(1),))
    assert none == {} and same == plain
    assert renamed == NAMES_IN_TRANSFORMER_ENGINE


def test_a_renamed_parameter_is_found_by_its_megatron_name(checkpoint):
    module = torch.nn.Linear(2, 2, bias=False)
    pieces = (ParameterPieces("a.b", (2, 2), (), False),)
    built = BuiltModel((module,), read_shape(checkpoint[0]), pieces, {"a.b": "weight"})
    assert built.named_parameters()["a.b"] is module.weight
