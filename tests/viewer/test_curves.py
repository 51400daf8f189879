"""The charts get the values of metrics.jsonl, gaps included, and the table the last of each."""

import math

import pytest

from megatron_prime.viewer.curves import (
    columns,
    curve_data,
    final_values,
    idle_shares,
    shown_panels,
    time_shares,
)
from megatron_prime.viewer.runs import Run, open_runs
from tests.support.viewed_runs import write_metrics


def run(tmp_path, records, name="a"):
    return Run(tmp_path, name, records, {})


def test_missing_values_are_none_and_what_phases_leave_is_other(tmp_path):
    records = [
        {"step": 1, "prm/ce": 0.5, "time/step_s": 10.0, "time/rollout_s": 4.0, "time/prm_s": 1.5},
        {"step": 2, "eval/accuracy": 1.0, "prm/ce": math.nan},
        {"step": 3, "time/step_s": 1.0, "time/rollout_s": 1.25},
    ]
    table = columns(records)
    assert table["prm/ce"] == [0.5, None, None]
    assert table["eval/accuracy"] == [None, 1.0, None]
    assert table["time/other_s"] == [4.5, None, 0.0]
    shares = dict(time_shares(run(tmp_path, records)))
    assert shares == pytest.approx({"rollout": 5.25 / 11, "prm": 1.5 / 11, "other": 4.5 / 11})
    assert time_shares(run(tmp_path, [{"step": 0}])) == []


def test_idle_time_is_a_share_of_the_time_of_all_steps(tmp_path):
    records = [
        {"step": 1, "time/step_s": 10.0, "time/engine_idle_fraction": 0.5},
        {
            "step": 2,
            "time/step_s": 30.0,
            "time/engine_idle_fraction": 0.1,
            "time/verifier_idle_fraction": 0.9,
        },
        {"step": 3, "time/engine_idle_fraction": 1.0},
    ]
    assert idle_shares(run(tmp_path, records)) == [
        ("engines", pytest.approx(0.2)),
        ("verifiers", pytest.approx(0.9)),
    ]
    assert idle_shares(run(tmp_path, [])) == []
    assert [panel.key for panel in shown_panels([run(tmp_path, records[2:])])] == ["idle"]


def test_panels_without_values_are_left_out_and_prefixes_are_filled_in(tmp_path):
    shown = shown_panels(
        [run(tmp_path, [{"step": 1, "rollout/accuracy_by_source/<b>": 0.5, "memory/device_peak_gib": 1.0}])]
    )
    assert [(panel.key, [series.label for series in panel.series]) for panel in shown] == [
        ("source", ["<b>"]),
        ("memory", ["peak_gib"]),
    ]
    assert shown_panels([run(tmp_path, [{"step": 1, "time/step_s": 2.0}])]) == []
    assert shown_panels([run(tmp_path, [])]) == []


def test_runs_are_overlaid_and_the_final_values_are_the_last_known_ones(tmp_path):
    runs = [
        run(tmp_path, [{"step": 4, "prm/ce": 0.5}, {"step": 8, "policy/entropy": 1.0}]),
        run(tmp_path, [{"step": 2, "prm/ce": 1 / 3}], "b"),
    ]
    data = curve_data(runs)
    assert [(each["name"], each["steps"]) for each in data["runs"]] == [("a", [4, 8]), ("b", [2])]
    assert data["runs"][1]["values"] == {"prm/ce": [0.33333]}
    assert [(row.metric, row.values) for row in final_values(runs)] == [
        ("prm/ce", ("0.5", "0.3333")),
        ("policy/entropy", ("1", "")),
    ]
    assert all(row.description for row in final_values(runs))


def test_a_written_run_fills_most_charts(tmp_path):
    write_metrics(tmp_path)
    keys = {panel.key for panel in shown_panels(open_runs([tmp_path]))}
    assert {"eval", "accuracy", "prm", "kl", "entropy", "length", "gap", "time", "memory", "groups"} <= keys
