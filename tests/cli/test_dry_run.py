"""A dry run prints Megatron's rank order and the commands of the run, and starts nothing."""

import json
import shlex
from pathlib import Path

import pytest

from megatron_prime.cli.dry_run import commands, dry_run, process_map, server_commands, server_map
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.loading import load_config
from megatron_prime.config.run import PrimeConfig
from tests.support.hf_shapes import make_config
from tests.support.planned_runs import write_model
from tests.support.toy_runs import ROOT


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config("llama", num_hidden_layers=8)))
    return tmp_path


def make(folder, **sections):
    settings = {"run_dir": folder / "run", "model": {"path": folder}, "trainer": {"num_steps": 1}}
    return PrimeConfig.model_validate(settings | sections)


def test_the_process_map_has_the_rank_order_of_megatron(folder):
    config = make(folder, parallel={"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "context": 2})
    lines = [line.split() for line in process_map(config, folder, 16, 8)]
    assert lines[0] == ["rank", "node", "local", "pipeline", "data", "context", "tensor", "expert", "layers"]
    # In Megatron's order, the tensor rank varies fastest, then context, data and pipeline.
    expected = [
        [str(n) for n in (rank, rank // 8, rank % 8, rank // 8, rank // 4 % 2, rank // 2 % 2, rank % 2)]
        for rank in range(16)
    ]
    assert [line[:7] for line in lines[1:]] == expected
    assert lines[1][8:] == ["0-1", "4-5"] and lines[9][8:] == ["2-3", "6-7"]


def test_servers_are_listed_with_their_gpus_and_commands(folder):
    servers = {"engine": "sglang", "sglang": {"num_servers": 2, "tensor": 2, "gpu_ids": [4, 5, 6, 7]}}
    config = make(folder, rollout=servers, platform={"device": "cuda"})
    assert list(server_map(config))[-1] == "server 1 on the node of rank 0, GPUs 6 7"
    ours = list(commands(["train", "run.toml", "policy.lr=1e-6"], 16, 8))
    assert ours[1].startswith("torchrun --nnodes=2 --nproc-per-node=8 ")
    assert ours[1].endswith("--rdzv-endpoint=$MASTER:29500 -m megatron_prime train run.toml policy.lr=1e-6")
    server = list(server_commands(config))[-1]
    assert "sglang.launch_server" in server and "--tp-size 2" in server and "--port PORT" in server
    lines = dry_run(config, BatchArithmetic.of(config, 16), Path("run.toml"), [], None)
    assert "sglang.launch_server" in lines[-1] and "server 1 on the node of rank 0, GPUs 6 7" in lines


def test_the_training_of_a_prm_has_its_own_layers_and_arithmetic_and_no_servers(folder, tmp_path):
    prm = tmp_path / "prm"
    prm.mkdir()
    (prm / "config.json").write_text(json.dumps(make_config("llama", num_hidden_layers=12)))
    config = make(
        folder,
        parallel={"pipeline": 2},
        prm={"path": prm},
        prm_training={"num_steps": 30, "prompts_per_step": 4},
        rollout={"engine": "sglang", "sglang": {"num_servers": 1}},
    )
    lines = dry_run(config, BatchArithmetic.of(config, 2), Path("run.toml"), ["seed=3"], None, "train-prm")
    assert "run         30 steps x 4 = 120 groups" in lines
    assert [line.split()[-1] for line in lines if line.startswith(("0 ", "1 "))] == ["0-5", "6-11"]
    assert not any("server" in line or "responses trained on" in line for line in lines)
    assert shlex.split(lines[-1])[1:] == ["-m", "megatron_prime", "train-prm", "run.toml", "seed=3"]


def test_a_dry_run_writes_its_files_and_nothing_else(folder):
    config = make(folder, parallel={"tensor": 2})
    lines = dry_run(config, BatchArithmetic.of(config, 4), Path("run.toml"), [], folder / "plan")
    assert sorted(path.name for path in (folder / "plan").iterdir()) == [
        "arithmetic.txt",
        "commands.sh",
        "config.json",
        "processes.txt",
    ]
    assert PrimeConfig.model_validate(json.loads((folder / "plan" / "config.json").read_text())) == config
    command = (folder / "plan" / "commands.sh").read_text().splitlines()[1]
    assert shlex.split(command)[1:] == ["-m", "megatron_prime", "train", "run.toml"]
    assert command in lines
    assert not (folder / "run").exists()


def test_addresses_lose_their_secrets(folder, tmp_path):
    url = "http://user:SECRET@host/verify?token=SECRET"
    config = make(folder, reward={"verifier": url})
    lines = dry_run(
        config, BatchArithmetic.of(config, 1), Path("run.toml"), [f"reward.verifier={url}"], tmp_path / "dry"
    )
    texts = ["\n".join(lines), *(path.read_text() for path in (tmp_path / "dry").iterdir())]
    assert len(texts) == 5 and not any("SECRET" in text for text in texts)
    assert json.loads((tmp_path / "dry" / "config.json").read_text())["reward"]["verifier"] == (
        "http://***@host/verify?***"
    )


def test_the_example_with_servers_on_their_own_nodes(tmp_path):
    folder = write_model(tmp_path / "model", "Llama-3-70B")
    config = load_config(ROOT / "examples" / "prime_70b_overlap.toml", [f"model.path={folder}"])
    lines = dry_run(config, BatchArithmetic.of(config, 112), Path("run.toml"), [], None)
    assert "processes   112 = tensor 4 x pipeline 14 x context 1 x data 2" in lines[1]
    assert lines.count("server http://server1:30000, attached") == 1
    assert sum(line.startswith("server ") for line in lines) == 2
    assert any("on each of 14 nodes" in line and "examples/prime_70b.sh" in line for line in lines)
    assert "launch_server" not in "".join(lines)
