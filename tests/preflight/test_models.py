"""Checkpoints that do not fit a run; whatever the start of `train` refuses, the check refuses with the same words."""

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from megatron_prime.models.builder import build_model
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from tests.preflight.workspace import check, faults_of, write_model

ONE = Topology(
    platform=Platform(torch.device("cpu"), "gloo", torch.float32, timedelta(seconds=60)),
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

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
REFUSED_BY_TRAIN = {
    "LongRoPE": {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
    "YaRN without a factor": {"rope_scaling": YARN | {"factor": None}},
    "linear scaling that compresses nothing": {"rope_scaling": {"type": "linear", "factor": 0.5}},
    "dynamic scaling with alpha": {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000}},
    "mistral with the default window": {"model_type": "mistral"},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 8191},
    "incomplete Llama 3 scaling": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}},
    "sliding window": {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1},
    "sliding window by layer": {"layer_types": ["full_attention", "sliding_attention"]},
    "quantized": {"quantization_config": {"quant_method": "awq"}},
    "another activation": {"hidden_act": "gelu"},
    "partial rotary embeddings": {"partial_rotary_factor": 0.5},
    "no rms_norm_eps": {"rms_norm_eps": None},
    "no key-value heads": {"num_key_value_heads": None},
    "attention bias": {"model_type": "llama", "attention_bias": True},
    "MLP bias": {"model_type": "llama", "mlp_bias": True},
    "unknown family": {"model_type": "gemma"},
    "a text for a size": {"num_hidden_layers": "2"},
    "a list for the scaling": {"rope_scaling": ["yarn"]},
    "heads that do not divide": {"num_attention_heads": 3},
    "one expert of constant weight": {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
    },
}


@pytest.mark.parametrize("case", REFUSED_BY_TRAIN)
def test_the_check_refuses_what_the_start_refuses_with_the_same_words(case, workspace):
    write_model(workspace / "model", **REFUSED_BY_TRAIN[case])
    with pytest.raises(ValueError, match=r"\w") as refused:
        build_model(Path("model"), ONE)
    faults = faults_of()
    assert [fault.removeprefix("model.path = model: ") for fault in faults] == [
        line.removeprefix("model: ") for line in str(refused.value).splitlines()
    ]


LAYOUTS_REFUSED_BY_TRAIN = {
    "tensor": ({"tensor_size": 4}, ["parallel.tensor=4"]),
    "pipeline": ({"pipeline_size": 3}, ["parallel.pipeline=3"]),
    "stages": (
        {"pipeline_size": 2, "layers_per_stage": (1, 2)},
        ["parallel.pipeline=2", "parallel.stage_layers=[1,2]"],
    ),
    "expert": ({"expert_size": 2}, ["parallel.expert=2"]),
}


@pytest.mark.parametrize("case", LAYOUTS_REFUSED_BY_TRAIN)
def test_the_check_refuses_layouts_that_the_start_refuses_with_the_same_words(case, workspace):
    sizes, overrides = LAYOUTS_REFUSED_BY_TRAIN[case]
    with pytest.raises(ValueError, match="parallel") as refused:
        build_model(Path("model"), replace(ONE, world_size=12, **sizes))
    assert faults_of(*overrides, processes=12) == tuple(
        f"model.path = model: {line}" for line in str(refused.value).splitlines()
    )


def test_a_tracker_that_names_no_checkpoint_is_refused_by_both(workspace):
    (workspace / "model" / "latest_checkpointed_iteration.txt").write_text("500")
    (fault,) = faults_of()
    assert fault.startswith("model.path = model: latest_checkpointed_iteration.txt names '500', but ")


def test_scales_of_experts_that_megatron_mixes_up_are_refused(workspace):
    write_model(workspace / "model", **EXPERTS)
    shutil.copytree(workspace / "model", workspace / "prm")
    acceleration = ["platform.device=cuda", "platform.dtype=bf16", "fp8.policy=delayed"]
    (fault,) = faults_of("prm.path=prm", *acceleration)
    assert fault.startswith("model.path = model: fp8.policy = 'delayed' cannot be combined with the experts")


@pytest.mark.parametrize(
    ("changes", "overrides", "fault"),
    [
        (
            {"num_attention_heads": 3, "head_dim": 8},
            ["parallel.tensor=2"],
            "num_attention_heads (3) is not a multiple of the KV heads (2)",
        ),
        ({"num_key_value_heads": 1}, ["parallel.tensor=2"], "does not divide num_key_value_heads = 1"),
        ({"intermediate_size": 63}, ["parallel.tensor=2"], "does not divide intermediate_size = 63"),
        ({"num_hidden_layers": 1}, ["parallel.pipeline=2"], "exceeds num_hidden_layers = 1"),
        ({"num_hidden_layers": None}, [], "config.json of the qwen2 model lacks num_hidden_layers"),
        (
            {"num_hidden_layers": 4},
            [
                "parallel.pipeline=2",
                "memory.recompute.granularity=full",
                "memory.recompute.num_layers=3",
            ],
            "memory.recompute.num_layers = 3 exceeds the 2 layers of a pipeline stage",
        ),
        ({"max_position_embeddings": 4095}, [], "= 4096 exceeds max_position_embeddings = 4095"),
        (
            {
                "max_position_embeddings": 1024,
                "rope_scaling": YARN | {"original_max_position_embeddings": 1024},
            },
            [],
            "its YaRN scaling reaches 4096: set max_position_embeddings to that in its config.json",
        ),
        (
            {"model_type": "gpt2"},
            [],
            "unknown model_type 'gpt2' in config.json; known: llama, mistral, mixtral, qwen2",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_layout_is_refused(workspace, changes, overrides, fault):
    write_model(workspace / "model", **changes)
    (line,) = faults_of(*overrides, processes=2)
    assert line.startswith("model.path = model: ")
    assert fault in line


EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "moe_intermediate_size": 30,
    "intermediate_size": 63,
}


@pytest.mark.parametrize(
    ("changes", "overrides", "fault"),
    [
        (
            {"num_hidden_layers": 3},
            ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
            "parallel.pipeline * virtual_pipeline = 4 exceeds num_hidden_layers = 3",
        ),
        ({}, ["parallel.expert=2"], "parallel.expert = 2, expert_tensor = 1: the model has no experts"),
        ({}, ["policy.load_balance_coef=0.1"], "policy.load_balance_coef = 0.1: the model has no experts"),
        (
            {"max_position_embeddings": 8192},
            [
                "rollout.engine=sglang",
                "rollout.sglang.urls=['http://a:1']",
                "rollout.sglang.routing_replay=true",
            ],
            "rollout.sglang.routing_replay = true: the model has no experts",
        ),
        (EXPERTS, ["parallel.expert=4"], "parallel.expert = 4 does not divide the number of experts = 6"),
        (EXPERTS, ["parallel.expert_tensor=4"], "does not divide the experts' intermediate size = 30"),
        (EXPERTS, ["parallel.tensor=2"], "needs parallel.sequence_parallel = true"),
    ],
)
def test_experts_and_chunks_that_do_not_fit_the_layout_are_refused(workspace, changes, overrides, fault):
    write_model(workspace / "model", **changes)
    (line,) = faults_of(*overrides, processes=4)
    assert line.startswith("model.path = model: ")
    assert fault in line


def test_experts_need_no_tensor_parallel_ffn_and_reuse_the_data_parallel_ranks(workspace):
    write_model(workspace / "model", **EXPERTS)
    layout = ["parallel.tensor=2", "parallel.sequence_parallel=true", "parallel.expert=2"]
    assert check(*layout, processes=4).data == 2
    assert faults_of(*layout, "parallel.expert_tensor=3", processes=2) == (
        "2 processes are not a multiple of parallel.pipeline * expert * expert_tensor = 1 * 2 * 3",
    )


def test_key_value_heads_default_to_the_attention_heads(workspace):
    write_model(workspace / "model", model_type="llama", num_key_value_heads=None)
    check("parallel.tensor=4", processes=4)


def test_a_sequence_may_fill_every_position(workspace):
    write_model(workspace / "model", max_position_embeddings=4096)
    check()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json does not hold an object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer (tokenizer.json, "),
    ],
)
def test_a_damaged_checkpoint_folder_is_named(workspace, damage, fault):
    damage(workspace / "model")
    (line,) = faults_of()
    assert line.startswith("model.path = model: ")
    assert fault in line


def test_an_engine_that_reads_files_needs_safetensors(workspace):
    model = workspace / "model"
    (model / "model.safetensors").unlink()
    (model / "latest_checkpointed_iteration.txt").write_text("release")
    (model / "release").mkdir()
    (model / "release" / ".metadata").touch()
    check()
    (line,) = faults_of("data.evaluation=['train.jsonl']", command="evaluate")
    assert "the engine reads safetensors: convert them with megatron-prime megatron-to-hf" in line


def test_a_name_of_the_hub_is_answered_with_how_to_download_it(workspace):
    lines = faults_of("model.path=Qwen/Qwen2.5-7B")
    assert any("`hf download Qwen/Qwen2.5-7B --local-dir Qwen/Qwen2.5-7B`" in line for line in lines), lines


def test_each_distinct_model_that_training_loads_is_checked(workspace):
    write_model(workspace / "other", vocab_size=101)
    paths = ["prm.path=other", "reference.path=nowhere"]
    missing, vocabulary = faults_of(*paths)
    assert missing.startswith("reference.path = nowhere: no such folder")
    assert "vocab_size differs (model.path: 100, prm.path: 101)" in vocabulary
    check("data.evaluation=['train.jsonl']", *paths, command="evaluate")
    check("prm.enabled=false", *paths)


def test_models_that_are_not_loaded_are_not_checked(workspace):
    check("reference.path=nowhere", "reference.mode=policy")
    check("reference.path=model", "prm.path=model")
    check("prm.path=nowhere", "prm.enabled=false")
    check("prm.path=nowhere", "reference.path=model", "prm.enabled=false", "policy.kl_coef=0.1")


@pytest.mark.parametrize("key", ["reference.path", "prm.path"])
def test_a_kl_term_needs_the_reference_even_without_a_prm(workspace, key):
    (fault,) = faults_of(f"{key}=nowhere", "prm.enabled=false", "policy.kl_coef=0.1")
    assert fault.startswith(f"{key} = nowhere: no such folder")


def test_sglang_needs_room_at_the_end_of_the_context(workspace):
    urls = 'rollout.sglang.urls=["http://node7:30000"]'
    longest = ("rollout.max_prompt_tokens=4096", "rollout.max_response_tokens=4096")
    check(*longest)
    [fault] = faults_of(*longest, "rollout.engine=sglang", urls)
    assert "less the 2 that SGLang reserves" in fault
