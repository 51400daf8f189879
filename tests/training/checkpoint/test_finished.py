"""A finished run is recognized, and nothing else is taken for one."""

import json

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.training.checkpoint import finished
from megatron_prime.training.checkpoint.finished import finished_note
from megatron_prime.training.checkpoint.folder import note_evaluation, owed_metrics
from megatron_prime.training.checkpoint.manifest import write_manifest


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000004"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "__0_0.distcp").write_bytes(b"shard")
    (folder / "rng.pt").write_bytes(b"states")
    (folder / "run.json").write_text(json.dumps({"step_index": 4}))
    write_manifest(folder)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    return folder


def note_of(run_dir, num_steps=4, **checkpoint):
    return finished_note(
        PrimeConfig.model_validate(
            {
                "run_dir": run_dir,
                "model": {"path": "m"},
                "trainer": {"num_steps": num_steps},
                "checkpoint": checkpoint,
            }
        )
    )


def test_a_finished_run_is_named(checkpoint, tmp_path):
    note = note_of(tmp_path)
    assert f"the run in {tmp_path} is finished: resuming after step 4 of 4 leaves nothing to do" in note
    assert "hf" in note and "trainer.num_steps" in note


def _flip(path):
    path.write_bytes(path.read_bytes()[::-1])


UNFINISHED = {
    "a byte flipped": lambda folder: _flip(folder / "policy" / "__0_0.distcp"),
    "a file lost": lambda folder: (folder / "rng.pt").unlink(),
    "run.json cut": lambda folder: (folder / "run.json").write_text("{"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "not exported": lambda folder: (folder.parents[1] / "hf" / "config.json").unlink(),
    "no checkpoint": lambda folder: folder.rename(folder.parents[1] / "aside"),
}


@pytest.mark.parametrize("case", UNFINISHED)
def test_anything_else_is_not_finished(case, checkpoint, tmp_path):
    UNFINISHED[case](checkpoint)
    assert note_of(tmp_path) is None
    if case == "not exported":
        assert "finished" in note_of(tmp_path, export_hf=False)


@pytest.mark.usefixtures("checkpoint")
def test_more_steps_or_a_fresh_start_are_not_finished(tmp_path):
    assert note_of(tmp_path, num_steps=5) is None
    assert note_of(tmp_path, resume="never") is None
    assert "finished" in note_of(tmp_path, num_steps=3)


@pytest.mark.parametrize(
    ("owed", "is_noted", "evaluates", "is_finished"),
    [
        ({"time/step_s": 1.0}, False, True, False),
        ({"time/step_s": 1.0}, True, True, True),
        ({"time/step_s": 1.0}, False, False, True),
        (None, False, True, True),
    ],
)
def test_a_run_whose_last_evaluation_is_still_to_be_done_is_not_finished(
    owed, is_noted, evaluates, is_finished, checkpoint, tmp_path
):
    run = {"step_index": 4, "owed_metrics": owed}
    (checkpoint / "run.json").write_text(json.dumps(run))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
    if is_noted:
        note_evaluation(checkpoint, 0.5)
    settings = {"run_dir": tmp_path, "model": {"path": "m"}, "trainer": {"num_steps": 4}}
    data = {"evaluation": ["held_out.jsonl"] if evaluates else []}
    note = finished_note(PrimeConfig.model_validate({**settings, "data": data}))
    assert (note is not None) == is_finished
    assert (owed_metrics(checkpoint, run) is None) == (is_noted or owed is None)


def test_of_a_large_checkpoint_the_sizes_are_compared(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "MAX_BYTES_READ", 1)
    _flip(checkpoint / "policy" / "__0_0.distcp")
    assert "finished" in note_of(tmp_path)
    (checkpoint / "policy" / "__0_0.distcp").write_bytes(b"")
    assert note_of(tmp_path) is None
