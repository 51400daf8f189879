"""A run that is killed at random moments ends as an unbroken one; and the tool sees it when a run does not."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.toy_runs import Toy, environment

TOOL = Path(__file__).parents[2] / "tools" / "chaos.py"


@pytest.fixture(scope="module")
def chaos():
    specification = importlib.util.spec_from_file_location("chaos", TOOL)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["chaos"] = module
    specification.loader.exec_module(module)
    return module


def test_kills_change_nothing(toy: Toy, layout_runs, chaos, tmp_path, monkeypatch):
    """Two data-parallel ranks that save in the background, held against a run that saved in the foreground."""
    monkeypatch.chdir(toy.folder)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    overrides = ["parallel.num_processes=2", "checkpoint.async_save=true"]
    setting = chaos.Setting(Path("run.toml"), overrides, tmp_path)
    tally = chaos.torment(setting, layout_runs["data=2"], num_kills=2, most_kills_a_run=2, seed=3)
    assert tally.faults == []
    assert tally.num_kills == 2
    assert tally.num_lives >= 3


@pytest.fixture
def copies(toy: Toy, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(toy.run_dir("single"), tmp_path / name)
    return tmp_path / "one", tmp_path / "other"


def change_a_metric(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2]["prm/loss"] *= 1 + 1e-12
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change_a_time(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2]["time/step_s"] += 1
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CHANGES = {
    "metrics differ from record 2": change_a_metric,
    "weights in model.safetensors differ": lambda run_dir: flip_a_bit(run_dir / "hf" / "model.safetensors"),
    "another checksum": lambda run_dir: flip_a_bit(next((run_dir / "checkpoints").glob("*4/prm/*.distcp"))),
    "checkpoints [": lambda run_dir: (run_dir / "checkpoints" / ".step_00000009.life1.partial").mkdir(),
}


@pytest.mark.parametrize("told", CHANGES)
def test_every_difference_is_told(told, chaos, copies):
    assert chaos.compare(*copies) == []
    CHANGES[told](copies[1])
    (found,) = chaos.compare(*copies)
    assert told in found


def test_measured_times_may_differ(chaos, copies):
    change_a_time(copies[1])
    assert chaos.compare(*copies) == []
    assert os.path.samefile(TOOL, chaos.__file__)
