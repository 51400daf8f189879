"""A run that is killed at random moments ends like an uninterrupted one, and the tool reports a run that does not."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.overlap_worker import IN_BACKGROUND, OVERLAP
from tests.support.toy_runs import Toy, environment, finish
from tools import chaos


@pytest.fixture
def in_toy(toy: Toy, monkeypatch):
    """Make the toy's folder and a user's environment those of this process."""
    monkeypatch.chdir(toy.folder)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("in_toy")
def test_kills_change_nothing(layout_runs, tmp_path):
    """Compare two data-parallel ranks that save in the background to a run that saved in the foreground."""
    overrides = ["parallel.num_processes=2", "checkpoint.async_save=true"]
    setting = chaos.Setting(Path("run.toml"), overrides, tmp_path)
    tally = chaos.kill_runs(setting, layout_runs["data=2"], num_kills=2, max_kills_per_run=2, seed=3)
    assert tally.faults == []
    assert tally.num_kills == 2
    assert tally.num_attempts >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("in_toy")
def test_kills_change_nothing_in_a_run_that_samples_ahead(toy: Toy, tmp_path):
    """Compare a run that samples in a thread, with kills, to one that samples in its main thread."""
    unbroken = tmp_path / "unbroken"
    finished = finish(toy.folder, "train", "run.toml", f"run_dir={unbroken}", *OVERLAP)
    assert finished.returncode == 0, finished.stderr
    setting = chaos.Setting(Path("run.toml"), [*OVERLAP, IN_BACKGROUND], tmp_path)
    tally = chaos.kill_runs(setting, unbroken, num_kills=2, max_kills_per_run=2, seed=0)
    assert tally.faults == []
    assert tally.num_kills == 2


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
    "held_batch.json differs": lambda run_dir: (
        next((run_dir / "checkpoints").glob("*2"), run_dir)
        .joinpath("held_batch.json")
        .write_text('{"step_index": 9}')
    ),
    "checkpoints [": lambda run_dir: (run_dir / "checkpoints" / ".step_00000009.attempt1.partial").mkdir(),
}


@pytest.mark.parametrize("message", CHANGES)
def test_every_difference_is_reported(message, copies):
    assert chaos.compare(*copies) == []
    CHANGES[message](copies[1])
    (found,) = chaos.compare(*copies)
    assert message in found


def test_measured_times_may_differ(copies):
    change_a_time(copies[1])
    assert chaos.compare(*copies) == []
