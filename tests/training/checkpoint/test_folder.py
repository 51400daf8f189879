"""Names and leftovers of checkpoint folders; test_store.py tests the retention policy with real checkpoints."""

import json
import os
import shutil

import pytest

from megatron_prime.training.checkpoint.folder import (
    EVALUATED,
    RESERVED_BYTES,
    all_named,
    complete,
    make_partial,
    name_of,
    note_evaluation,
    partial_of,
    prune,
    publish,
    read_run,
    release_space,
    reserve_space,
    set_aside,
)


def finished(folder, step, accuracy=None):
    path = folder / name_of(step)
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"step_index": step, "accuracy": accuracy}))
    return path


def test_a_save_gets_its_name_when_it_is_complete(tmp_path):
    final = tmp_path / "checkpoints" / name_of(7)
    partial = partial_of(final, attempt=2)
    make_partial(partial, ["policy", "prm"], attempt=2)
    assert sorted(path.name for path in partial.iterdir()) == [".reserved", "policy", "prm"]
    assert complete(final.parent) == []
    (partial / "run.json").write_text("{}")
    publish(partial, final)
    assert complete(final.parent) == [final]


def _put_half(final):
    (final / "policy").mkdir(parents=True)
    (final / "policy" / "__0_0.distcp").write_text("half")


IN_THE_WAY = {
    "empty folder": lambda final: final.mkdir(),
    "half a checkpoint": _put_half,
    "file": lambda final: final.write_text(""),
    "link to nothing": lambda final: final.symlink_to("gone"),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_save_replaces_what_has_its_name_and_keeps_it_aside(kind, tmp_path):
    final = tmp_path / name_of(7)
    IN_THE_WAY[kind](final)
    assert all_named(tmp_path) == [(final, False)]
    partial = partial_of(final, attempt=2)
    make_partial(partial, ["policy"], attempt=2)
    (partial / "run.json").write_text("{}")
    publish(partial, final)
    assert complete(tmp_path) == [final]
    assert all_named(tmp_path) == [(final, True)]
    assert os.path.lexists(tmp_path / f"damaged_{final.name}")


@pytest.mark.parametrize("content", ["", "[]", '{"accuracy": "high"}'])
def test_an_older_checkpoint_that_cannot_be_read_ends_no_run(content, tmp_path):
    for step in (1, 2):
        (tmp_path / name_of(step)).mkdir()
        (tmp_path / name_of(step) / "run.json").write_text('{"accuracy": 0.5}')
    (tmp_path / name_of(1) / "run.json").write_text(content)
    prune(tmp_path, keep_last=1, keep_best=1, attempt=1)
    assert [path.name for path in tmp_path.iterdir()] == [name_of(2)]


def test_leftovers_of_this_and_earlier_attempts_are_removed_and_those_of_later_ones_kept(tmp_path):
    names = [
        ".step_00000001.attempt1.partial",
        ".step_00000002.attempt3.removed",
        ".step_00000003.attempt4.partial",
    ]
    for name in [*names, "step_00000004", "damaged_step_00000005"]:
        (tmp_path / name / "deep").mkdir(parents=True)
    make_partial(partial_of(tmp_path / name_of(9), 3), [], attempt=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".step_00000003.attempt4.partial",
        ".step_00000009.attempt3.partial",
        "damaged_step_00000005",
        "step_00000004",
    ]


def test_disk_space_is_reserved_and_released(tmp_path):
    reserve_space(tmp_path)
    assert (tmp_path / ".reserved").stat().st_blocks * 512 >= RESERVED_BYTES
    release_space(tmp_path)
    release_space(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [(1, 0, [5]), (2, 1, [2, 4, 5]), (1, 2, [1, 2, 5]), (9, 0, [1, 2, 3, 4, 5])],
)
def test_the_last_and_the_best_are_kept(tmp_path, keep_last, keep_best, kept):
    for step, accuracy in enumerate([0.5, 0.9, None, 0.1, 0.2], start=1):
        finished(tmp_path, step, accuracy)
    prune(tmp_path, keep_last, keep_best, attempt=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name_of(step) for step in kept]


def test_an_accuracy_that_was_measured_later_counts_for_the_best(tmp_path):
    for step, accuracy in ((1, 0.5), (2, None), (3, None), (4, 0.1)):
        finished(tmp_path, step, accuracy)
    note_evaluation(tmp_path / name_of(2), 0.9)
    (tmp_path / name_of(3) / EVALUATED).write_text("damaged")
    prune(tmp_path, keep_last=1, keep_best=1, attempt=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name_of(2), name_of(4)]


def test_setting_a_checkpoint_aside_never_overwrites(tmp_path):
    for expected in ("damaged_step_00000003", "damaged_step_00000003_2"):
        assert set_aside(finished(tmp_path, 3)).name == expected
    assert complete(tmp_path) == []


@pytest.mark.parametrize("text", [None, "", "[1]"])
def test_a_run_json_that_cannot_be_read_is_refused(tmp_path, text):
    path = finished(tmp_path, 1)
    (path / "run.json").unlink() if text is None else (path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        read_run(path)
    shutil.rmtree(path)
