"""The command line and the environment of a server."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.launch import (
    LOADER,
    LaunchPlan,
    check_experts,
    check_quantization,
    check_transport,
    install_quantized,
    install_receiver,
    served_folder,
    with_cache_size,
    with_transport,
)
from megatron_prime.hf.shape import ModelShape
from tests.support.planned_runs import PUBLIC


def plan(device="cpu", **settings):
    return LaunchPlan(Path("model"), device, "bf16", 7, SGLangConfig(**settings))


def value_of(command, option):
    places = [place for place, word in enumerate(command) if word == option]
    return command[places[-1] + 1] if places else None


def test_the_command_has_model_address_and_sizes():
    command = plan(concurrency=12, tensor=2).command(1, 4321)
    assert command[1:3] == ["-m", "sglang.launch_server"]
    wanted = {
        "--model-path": "model",
        "--port": "4321",
        "--host": "127.0.0.1",
        "--dtype": "bfloat16",
        "--tp-size": "2",
        "--random-seed": "8",
        "--max-running-requests": "12",
        "--max-total-tokens": "32768",
    }
    assert {option: value_of(command, option) for option in wanted} == wanted


def test_on_a_gpu_the_cache_is_sized_by_memory():
    command = plan("cuda", mem_fraction=0.5).command(0, 1)
    assert value_of(command, "--mem-fraction-static") == "0.5"
    assert value_of(command, "--max-total-tokens") is None
    assert "--disable-overlap-schedule" not in command


def test_extra_arguments_come_last_and_so_win():
    command = plan(extra_args=("--dtype", "float16")).command(0, 1)
    assert value_of(command, "--dtype") == "float16"


def test_deterministic_inference_is_switched_on():
    assert "--enable-deterministic-inference" in plan("cuda", deterministic=True).command(0, 1)


def test_experts_are_returned_where_training_replays_them():
    switch = "--enable-return-routed-experts"
    assert switch in plan(routing_replay=True).command(0, 1)
    assert switch not in plan().command(0, 1)


def test_the_interpreter_is_not_resolved_out_of_its_environment(tmp_path):
    (tmp_path / "python").symlink_to("/usr/bin/env")
    assert plan(python=tmp_path / "python").command(0, 1)[0] == str(tmp_path / "python")


def test_the_training_job_does_not_leak_into_the_server():
    job = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "TORCHELASTIC_RUN_ID": "x", "PYTHONPATH": "p"}
    environment = plan().environment(0, job | {"HOME": "/h", "SGLANG_RETURN_ORIGINAL_LOGPROB": "1"})
    assert not set(job) & set(environment) and environment["HOME"] == "/h"
    assert "SGLANG_RETURN_ORIGINAL_LOGPROB" not in environment
    assert environment["SGLANG_USE_CPU_ENGINE"] == "1" and environment["OMP_NUM_THREADS"] == "1"
    assert environment["TORCHDYNAMO_DISABLE"] == "1", (
        "compiling needs a C++ compiler, which a machine may lack"
    )


def test_tensor_parallel_ranks_on_a_cpu_are_bound():
    assert plan(tensor=2).environment(0, {})["SGLANG_CPU_OMP_THREADS_BIND"] == "0|1"


@pytest.mark.parametrize(
    ("settings", "inherited", "gpus"),
    [
        ({}, {}, "2,3"),
        ({"gpu_ids": (4, 5, 6, 7)}, {}, "6,7"),
        ({}, {"CUDA_VISIBLE_DEVICES": "0,2,4,6"}, "4,6"),
        ({}, {"CUDA_VISIBLE_DEVICES": "1"}, "2,3"),
    ],
)
def test_each_server_has_its_own_gpus(settings, inherited, gpus):
    environment = plan("cuda", num_servers=2, tensor=2, **settings).environment(1, inherited)
    assert environment["CUDA_VISIBLE_DEVICES"] == gpus


def test_servers_use_the_gpus_of_all_ranks_of_the_node():
    """Each rank of a job with a GPU per task names only its own."""
    together = replace(plan("cuda", num_servers=2, tensor=2), node_gpus=("3", "1", "0", "2"))
    for server, gpus in ((0, "3,1"), (1, "0,2")):
        found = together.environment(server, {"CUDA_VISIBLE_DEVICES": "3"})
        assert found["CUDA_VISIBLE_DEVICES"] == gpus


@pytest.mark.parametrize(("cores", "bound"), [((), "0|1|2"), ((4, 6, 9, 11), "4|6|9"), ((5, 7), "5|7|5")])
def test_ranks_on_a_cpu_are_bound_to_cores_of_the_job(cores, bound):
    environment = replace(plan(tensor=3), cores=cores).environment(0, {})
    assert environment["SGLANG_CPU_OMP_THREADS_BIND"] == bound


def test_the_receiver_stands_alone_where_servers_import_it(tmp_path):
    folder = install_receiver(tmp_path / "loader")
    assert install_receiver(folder) == folder
    package = folder / LOADER.partition(".")[0]
    assert list(folder.iterdir()) == [package]
    assert sorted(p.name for p in package.iterdir()) == [
        "__init__.py",
        "changes.py",
        "parameters.py",
        "receiver.py",
        "serve.py",
        "signing.py",
        "staging.py",
        "wire.py",
    ]
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import {LOADER.partition('.')[0]} as r; print(r.receive)"
    output = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.startswith("<function receive")
    with_loader = replace(plan(), loader_folder=folder)
    assert value_of(with_loader.command(0, 1), "--custom-weight-loader") == LOADER
    assert with_loader.environment(0, {"PYTHONPATH": "the trainer's"})["PYTHONPATH"] == str(folder)


def test_nccl_is_refused_on_a_shared_gpu():
    check_transport(replace(plan(), is_colocated=True))
    check_transport(plan("cuda"))
    with pytest.raises(ValueError, match=r"'shards' uses NCCL.*gpu_ids"):
        check_transport(replace(plan("cuda"), is_colocated=True))


def test_experts_are_not_split_on_a_cpu():
    check_experts(SGLangConfig(tensor=2, expert=2), "cuda")
    check_experts(SGLangConfig(tensor=2), "cpu")
    with pytest.raises(ValueError, match=r"rollout.sglang.expert = 2.*on a CPU; set it to 1"):
        check_experts(SGLangConfig(tensor=2, expert=2), "cpu")


def test_a_quantized_model_is_described_without_weights(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    for name in ("tokenizer.json", "model.safetensors", "model.safetensors.index.json"):
        (model / name).write_text("{}")
    folder = install_quantized(model, tmp_path / "sglang" / "quantized")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["quantization_config"]["weight_block_size"] == [128, 128]


def test_weights_of_other_formats_are_not_served(tmp_path):
    model, links = tmp_path / "model", tmp_path / "sglang" / "model"
    model.mkdir()
    assert served_folder(model, links) == model
    names = {"config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"}
    for name in names:
        (model / name).write_text(name)
    assert served_folder(model, links) == model
    (model / "adapter_model.safetensors").write_text("other")
    (model / "original").mkdir()
    for _ in range(2):
        assert served_folder(model, links) == links
        assert {path.name: path.read_text() for path in links.iterdir()} == {name: name for name in names}
    (model / "tokenizer.json").unlink()
    served_folder(model, links)
    assert {path.name for path in links.iterdir()} == names - {"tokenizer.json"}
    # SGLang itself reads only the files that an index names.
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    assert served_folder(model, links) == model


def test_weights_are_read_from_the_checkpoint_only_where_no_sync_brings_them():
    for settings in ({}, {"weight_transport": "ipc"}, {"quantization": "fp8"}):
        assert value_of(plan("cuda", **settings).command(0, 1), "--load-format") == "dummy"
    assert value_of(plan("cuda", weight_transport="disk").command(0, 1), "--load-format") is None


def test_idle_servers_sleep():
    for device in ("cpu", "cuda"):
        assert "--sleep-on-idle" in plan(device).command(0, 1)


def test_servers_on_gpus_get_an_environment_in_which_memory_can_be_shared():
    environment = plan("cuda").environment(0, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environment
    assert environment["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] == "0"
    assert environment["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] == "1"
    assert (
        plan("cuda").environment(0, {"SGLANG_MEMORY_SAVER_CUDA_GRAPH": "0"})["SGLANG_MEMORY_SAVER_CUDA_GRAPH"]
        == "0"
    )


def test_the_cache_of_servers_on_shared_gpus_has_a_fixed_size():
    shape = ModelShape.from_hf_config(PUBLIC["Llama-3-70B"])
    settings = SGLangConfig(tensor=8, mem_fraction=0.5)
    # 16-bit weights of 8 ranks, and one KV head of 128 in each of 80 layers.
    weights, per_token = 70_553_706_496 * 2 // 8, 2 * 128 * 80 * 2
    tokens = with_cache_size(settings, shape, 80 << 30).max_total_tokens
    assert tokens == ((40 << 30) - weights) // per_token
    assert (
        with_cache_size(settings.model_copy(update={"max_total_tokens": 7}), shape, 80 << 30).max_total_tokens
        == 7
    )
    assert with_cache_size(settings, shape, 1 << 30).max_total_tokens is None


@pytest.mark.parametrize(
    ("chosen", "device", "is_colocated", "expected"),
    [
        (None, "cuda", True, "ipc"),
        (None, "cuda", False, "shards"),
        (None, "cpu", True, "shards"),
        ("shards", "cuda", True, "shards"),
        ("disk", "cuda", True, "disk"),
    ],
)
def test_servers_on_the_trainers_gpus_get_weights_by_shared_memory(chosen, device, is_colocated, expected):
    settings = with_transport(SGLangConfig(weight_transport=chosen), device, is_colocated)
    assert settings.weight_transport == expected


def test_fp8_is_not_served_on_a_cpu():
    check_quantization(SGLangConfig(quantization="fp8"), "cuda")
    check_quantization(SGLangConfig(), "cpu")
    with pytest.raises(ValueError, match=r"rollout.sglang.quantization = 'fp8' needs GPUs"):
        check_quantization(SGLangConfig(quantization="fp8"), "cpu")
