"""Runs are found by their folder, named as shortly as possible, and have one record per step."""

from pathlib import Path

import pytest

from megatron_prime.viewer.runs import finite, in_order, open_runs, short_names
from tests.support.viewed_runs import write_metrics, write_run


def test_a_run_has_its_records_and_logged_steps(tmp_path):
    write_run(tmp_path / "a")
    [run] = open_runs([tmp_path / "a", tmp_path / "a" / ".." / "a"])
    assert run.name == "a"
    assert [record["step"] for record in run.records] == list(range(1, 21))
    assert list(run.step_files) == [4, 8, 12]


def test_a_run_that_was_killed_shows_no_step_twice(tmp_path):
    """Between a kill and the resume, the history may hold steps that the next attempt will log again."""
    write_metrics(tmp_path, num_steps=3)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 2, "prm/ce": 7.0}\n{"step": 4')
    [run] = open_runs([tmp_path])
    assert [record["step"] for record in run.records] == [1, 2, 3]
    assert run.records[1] == {"step": 2, "prm/ce": 7.0}
    assert in_order([]) == []


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a/prime"], ["prime"]),
        (["/r/a/prime", "/r/b/prime"], ["a/prime", "b/prime"]),
        (["/r/a", "/r/b/a", "/r/c"], ["r/a", "b/a", "c"]),
    ],
)
def test_names_are_the_shortest_ends_that_differ(paths, names):
    assert short_names([Path(path) for path in paths]) == names


def test_a_folder_without_a_run_is_answered_with_those_below_it(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics.jsonl and no rollouts/: name the run_dir"):
        open_runs([tmp_path])
    for name in ("quick/prime", "quick/sft/sft_log"):
        write_metrics(tmp_path / name, num_steps=1)
    with pytest.raises(ValueError, match=r"did you mean .*quick/prime or .*quick/sft/sft_log\?"):
        open_runs([tmp_path / "quick"])
    with pytest.raises(ValueError, match="nothing is not a folder"):
        open_runs([tmp_path / "nothing"])


def test_damaged_metrics_are_an_error_that_names_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nno\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is not JSON"):
        open_runs([tmp_path])


def test_finite():
    assert [finite(value) for value in (None, float("nan"), float("inf"), 2)] == [None, None, None, 2.0]
