import json
import math

import pytest

from megatron_prime.rollout.prompt_history import PromptHistory, read_prompt_stats

STEPS = {
    1: [(4, 0.5, "kept"), (7, 0.0, "dropped_too_hard")],
    2: [(4, 1.0, "dropped_too_easy"), (9, math.nan, "dropped_verifier_error")],
    3: [(7, 0.0, "dropped_too_hard"), (11, 1.0, "dropped_too_easy")],
}


def log_all(history, steps):
    for step in steps:
        history.log(step, STEPS[step])


def test_statistics_per_prompt(tmp_path):
    history = PromptHistory(tmp_path / "prompts.jsonl")
    log_all(history, STEPS)
    found = {
        index: (stats.num_sampled, stats.num_verified, stats.last_step)
        for index, stats in history.prompts.items()
    }
    assert found == {4: (2, 2, 2), 7: (2, 2, 3), 9: (1, 0, 2), 11: (1, 1, 3)}
    assert history.prompts[4].mean_accuracy == 0.75
    assert math.isnan(history.prompts[9].mean_accuracy)
    assert history.metrics() == {
        "num_seen": 4,
        "mean_times_sampled": 6 / 4,
        "always_right_fraction": 1 / 3,
        "always_wrong_fraction": 1 / 3,
    }
    assert read_prompt_stats(tmp_path / "prompts.jsonl") == history.prompts


def test_a_resumed_run_writes_the_file_of_an_uninterrupted_one(tmp_path):
    whole, resumed_path = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    history = PromptHistory(whole)
    log_all(history, STEPS)
    history.close()
    killed = PromptHistory(resumed_path)
    log_all(killed, [1, 2])
    killed.close()
    with resumed_path.open("a") as file:
        file.write('{"step": 3, "pro')
    resumed = PromptHistory(resumed_path, resume_step=2)
    log_all(resumed, [2, 3])
    resumed.close()
    assert resumed_path.read_bytes() == whole.read_bytes()
    assert resumed.metrics() == history.metrics()


def test_a_new_history_is_empty(tmp_path):
    assert PromptHistory(tmp_path / "a" / "prompts.jsonl").metrics()["num_seen"] == 0


def test_a_malformed_record_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(ValueError, match="step 1 has no list 'prompts'"):
        PromptHistory(path, 5)
