"""Demonstrations become responses whose outcomes are those of the task's own answers, with turns as in a run."""

import json

import pytest

from benchmarks.learning.chain import judged_numbers
from benchmarks.learning.demonstrations import write_demonstrations, write_right_demonstrations
from benchmarks.learning.tasks import ChainTask
from megatron_prime.evaluation.saved_responses import read_responses


@pytest.mark.parametrize("marks", [0, 1])
def test_outcomes_and_turns_are_those_of_the_task(tmp_path, monkeypatch, marks):
    monkeypatch.setattr("benchmarks.learning.tasks.NUM_DEMONSTRATIONS", 64)
    monkeypatch.setattr("benchmarks.learning.tasks.NUM_PROBLEMS", 1)
    task = ChainTask("test", num_steps=4, marks=marks)
    task.write(tmp_path, 3)
    path = tmp_path / "demonstrations.parquet"
    write_demonstrations(path, task, tmp_path / "sft.jsonl", tmp_path / "model")
    width = 3 if marks else 2
    outcomes = []
    for problem in read_responses(path):
        (response,) = problem.responses
        assert [(turn.policy_end, turn.end) for turn in response.turns] == [
            *((width * step + 1, width * step + width) for step in range(3)),
            (3 * width + 1, 3 * width + 1),
        ]
        outcomes.append(response.outcome)
    rows = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    for row, outcome in zip(rows, outcomes, strict=True):
        words = [*row["prompt"].split(), *row["response"].split()]
        places = range(2, len(words), width)
        if all(judged_numbers(words, places, 10)):
            assert outcome == 1.0
    assert 0 < sum(outcomes) < len(outcomes)
    write_right_demonstrations(tmp_path / "right.jsonl", task, tmp_path / "sft.jsonl")
    right = [json.loads(line) for line in (tmp_path / "right.jsonl").read_text().splitlines()]
    assert right == [row for row, outcome in zip(rows, outcomes, strict=True) if outcome]
