"""The comparison of credit counts rollouts to a threshold, and says which runs never got there."""

import json

import pytest

from benchmarks import turn_credit
from benchmarks.turn_credit import Curve, interval, read_curve, table
from megatron_prime.config.loading import load_config
from megatron_prime.quickstart.folder import packaged_config


@pytest.mark.parametrize("method", sorted(turn_credit.METHODS))
def test_the_settings_of_every_method_are_valid(method):
    config = load_config(packaged_config("chain"), [*turn_credit.SHARED, *turn_credit.METHODS[method]])
    assert config.prm.enabled != method.startswith("outcome")


def test_a_crossing_is_the_end_of_the_first_window_that_reaches_the_threshold():
    curve = Curve((10, 20, 30, 40, 50, 60), (0.0, 0.4, 0.8, 0.8, 0.8, 0.0), 0.5, 1.0)
    assert [curve.crossing(threshold) for threshold in (0.5, 0.7, 0.71)] == [40, 50, None]


def write_run(run, accuracies):
    (run / "hf").mkdir(parents=True)
    records = [{"step": 0, "eval/accuracy": 0.1}]
    for step, accuracy in enumerate(accuracies, 1):
        measured = {
            "rollout/accuracy_sampled": accuracy,
            "rollout/num_rollouts_sampled": 128,
            "time/step_s": 2.0,
        }
        records.append({"step": step, **measured})
    records[-1]["eval/accuracy"] = accuracies[-1]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_table_has_the_finished_runs(tmp_path):
    write_run(tmp_path / "seed1/outcome", [0.1] * 6)
    write_run(tmp_path / "seed2/outcome", [0.6] * 6)
    write_run(tmp_path / "seed1/hindsight", [0.9] * 6)
    _, _, outcome, hindsight = table(tmp_path, (1, 2, 3), ("outcome", "hindsight"))
    assert outcome.split(" | ")[1] == "2" and "(1 never)" in outcome.split(" | ")[3]
    assert hindsight.split(" | ")[1:] == ["1", "0.9", "512", "512", "512", "12 |"]
    assert read_curve(tmp_path / "seed3/outcome") is None


def test_intervals_are_those_of_student():
    # Mean 2, standard deviation 1, three values: 4.30 / sqrt(3).
    assert interval([1.0, 2.0, 3.0]) == "2.000 ± 2.483"
    assert interval([100.0, 200.0, 300.0]) == "200 ± 248"
