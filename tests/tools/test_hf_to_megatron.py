"""The command lines of both conversion tools: a round trip, and errors in one line."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.forked_commands import FORKED
from tests.support.tiny_models import save_tiny_model

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool, *arguments):
    done = subprocess.run(
        [sys.executable, *FORKED, "-W", "ignore", str(TOOLS / tool), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_round_trip_by_the_command_line(tmp_path):
    save_tiny_model("qwen3", tmp_path / "hf")
    there = run("hf_to_megatron.py", tmp_path / "hf", tmp_path / "megatron")
    assert there[0] == 0, there[2]
    assert "every tensor read back and equal" in there[1]
    back = run("megatron_to_hf.py", tmp_path / "megatron", tmp_path / "back", "--dtype", "fp32")
    assert back[0] == 0, back[2]
    expected = load_file(tmp_path / "hf" / "model.safetensors")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    again = run("hf_to_megatron.py", tmp_path / "hf", tmp_path / "megatron")
    assert again[0] == 2 and "megatron exists already" in again[2] and again[2].count("\n") == 1
