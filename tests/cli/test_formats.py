"""The commands that change the format of a checkpoint: a round trip, faults in one line, and where the config is."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from megatron_prime.cli.formats import resolve_folders
from tests.support.tiny_models import save_tiny_model
from tests.support.toy_runs import environment


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "megatron_prime", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    return done.returncode, done.stdout, done.stderr


def test_a_round_trip_by_the_command_line(tmp_path):
    save_tiny_model("qwen3", tmp_path / "hf")
    there = run("hf-to-megatron", tmp_path / "hf", tmp_path / "megatron")
    assert there[0] == 0, there[2]
    assert "every tensor read back and equal" in there[1]
    back = run(
        "megatron-to-hf", tmp_path / "megatron", tmp_path / "back", "--dtype", "fp32", "--compare-logits"
    )
    assert back[0] == 0, back[2]
    assert "largest difference of log-probs: " in back[1]
    expected = load_file(tmp_path / "hf" / "model.safetensors")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    again = run("hf-to-megatron", tmp_path / "hf", tmp_path / "megatron")
    assert again[0] == 2 and "megatron exists already" in again[2] and again[2].count("\n") == 1


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "release").mkdir(parents=True)
    (tmp_path / "model" / "release" / ".metadata").touch()
    (tmp_path / "model" / "latest_checkpointed_iteration.txt").write_text("release")
    return tmp_path / "model"


def test_the_config_beside_the_weights_is_found(folder):
    with pytest.raises(ValueError, match="name the HF folder of its model with --hf"):
        resolve_folders(folder, None)
    (folder / "config.json").touch()
    assert resolve_folders(folder, None) == (folder / "release", folder)
    assert resolve_folders(folder / "release", None) == (folder / "release", folder)


def test_the_hf_option_takes_precedence(folder, tmp_path):
    (folder / "config.json").touch()
    (tmp_path / "config.json").touch()
    assert resolve_folders(folder, tmp_path) == (folder / "release", tmp_path)
