"""Figures are calculated from a run whose timeline is known."""

import dataclasses
import json
import math

import pytest

from benchmarks.overlap.report import covered, figures, figures_of, goals, mean, table


def record(row="rounds", rounds=True):
    """Return a run of five steps of 10 s: sampling for 4 s and for 2 s, 1 s behind each, then 2 s of training."""
    steps = [[10.0 * step, 10.0 * step + 10] for step in range(5)]
    requests = []
    for begin, _ in steps:
        requests += [[begin, begin + 4, 40], [begin + 1, begin + 3, 10], [begin + 5, begin + 7, 30]]
    metrics = {
        "time/policy_s": 1.5,
        "time/prm_s": 0.5,
        "time/step_s": 10.0,
        "throughput/response_tokens_per_s": 7.0,
        "rollout/num_prompts_sampled": 12.0,
    }
    return {
        "row": row,
        "load": [1.0, 2.0],
        "metrics": [metrics] * 5,
        "watched": {
            "steps": steps,
            "requests": requests,
            "collections": [[begin, begin + 8] for begin, _ in steps],
            "rounds": [[begin, begin + 4] for begin, _ in steps]
            + [[begin + 5, begin + 7] for begin, _ in steps]
            if rounds
            else [],
        },
    }


def test_figures_of_a_known_timeline():
    found = figures(record())
    assert (found.num_steps, found.step_s, found.collection_s, found.first_round_s) == (2, 10.0, 8.0, 4.0)
    assert (found.train_s, found.trainer_idle) == (2.0, pytest.approx(0.8))
    assert found.server_idle == pytest.approx(0.4) and found.in_flight == pytest.approx(0.8)
    assert found.tokens_per_s == 7.0 and found.sampled_tokens_per_s == pytest.approx(8.0)
    assert found.lengths == (30, 40, 40, 40) and found.staleness == (0.0, 0.0)
    assert figures(record(rounds=False)).first_round_s == 0.0
    assert figures_of(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_a_run_in_which_no_answer_ended_has_figures():
    run = record()
    run["watched"]["requests"] = [[0.0, 1000.0, 40]]
    found = figures(run)
    assert found.server_idle == 0.0 and found.sampled_tokens_per_s == 0.0
    assert math.isnan(found.mean_tokens) and all(map(math.isnan, found.lengths))


def test_spans_that_overlap_are_counted_once():
    assert covered([(3, 5), (0, 2), (1, 2.5), (4, 4.5)]) == 4.5
    assert covered([]) == 0


def test_tables_and_goals():
    rounds = figures(record())
    faster = dataclasses.replace(
        rounds, row="streaming", collection_s=4.4, step_s=6.5, first_round_s=0.0, server_idle=0.4
    )
    ahead = dataclasses.replace(faster, row="one step off", step_s=5.0)
    lines = table([rounds, faster]).splitlines()
    assert lines[2].endswith("| 1.00 |") and lines[3].endswith("| 1.54 |")
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    text = goals([rounds, faster, ahead])
    # Rounds have no request for 4 of 10 s, 2 of them in training; streaming for 2.6 of 6.5 s, 2.1 of them in training.
    assert "for 2.00 s with rounds and for 0.50 s with streaming, which removes 75%" in text
    assert "leaves 0.40 of the 4.00 s behind it and removes 90%" in text
    assert "is 88% of it" in text
    assert goals([rounds]) == ""


def test_means_of_repeats():
    one, two = figures(record()), dataclasses.replace(figures(record()), step_s=20.0, staleness=(1.0, 2.0))
    both = mean([one, two])
    assert (both.step_s, both.staleness, both.row) == (15.0, (0.5, 1.0), "rounds")
