import json
import time

import pytest

from megatron_prime import __version__
from megatron_prime.evaluation.saved_responses import read_responses
from tests.support.event_files import EventFiles
from tests.support.toy_runs import NUM_STEPS, Toy, records


def evaluation_in_training(toy: Toy, step: int) -> dict[str, float]:
    record = next(record for record in records(toy.run_dir("single")) if record["step"] == step)
    return {name.removeprefix("eval/"): value for name, value in record.items() if name.startswith("eval/")}


def test_eval_equals_the_evaluation_inside_training_before_the_first_step(toy: Toy):
    written = json.loads((toy.run_dir("eval_start") / "evaluation.json").read_text())[-1]["metrics"]
    assert written == evaluation_in_training(toy, 0)
    assert written["num_prompts"] == 32


def test_eval_of_the_export_equals_the_final_evaluation_inside_training(toy: Toy):
    written = json.loads((toy.run_dir("eval_end") / "evaluation.json").read_text())[-1]["metrics"]
    in_training = evaluation_in_training(toy, NUM_STEPS)
    assert set(written) == set(in_training)
    # The benchmark is sampled, with different random numbers at each step; the held-out prompts are decoded greedily.
    greedy = [name for name in written if not name.startswith(("toy/", "benchmark_average"))]
    assert "accuracy" in greedy
    assert {name: written[name] for name in greedy} == {name: in_training[name] for name in greedy}


def test_a_result_says_what_was_evaluated_and_how(toy: Toy):
    (record,) = json.loads((toy.run_dir("eval_end") / "evaluation.json").read_text())
    assert record["model"] == str((toy.folder / "single" / "hf").absolute())
    assert record["version"] == __version__
    assert time.mktime(time.strptime(record["time"], "%Y-%m-%dT%H:%M:%S%z")) <= time.time()
    settings = record["settings"]
    assert settings["evaluation"]["samples_per_prompt"] == 2
    assert settings["data"]["evaluation"] == ["task/heldout.jsonl"]
    assert settings["rollout"]["max_response_tokens"] == 12


def test_eval_prints_tables_and_the_path_of_its_output(toy: Toy):
    code, output = toy.facts["eval start"]
    assert code == 0
    assert "sft, temperature 0" in output
    for name in ("accuracy", "pass_at_2", "mean_response_tokens", "eval_start/evaluation.json"):
        assert name in output
    for words in ("95% intervals", "avg@k, %", "held-out", "8 x 4", "responses/toy.parquet"):
        assert words in output


def test_the_written_responses_have_the_reported_accuracies(toy: Toy):
    written = json.loads((toy.run_dir("eval_end") / "evaluation.json").read_text())[-1]["metrics"]
    problems = read_responses(toy.run_dir("eval_end") / "responses" / "toy.parquet")
    outcomes = [[response.outcome for response in problem.responses] for problem in problems]
    assert [len(group) for group in outcomes] == [4] * 8
    assert written["toy/accuracy"] == pytest.approx(sum(map(sum, outcomes)) / 32)
    assert written["toy/pass_at_4"] == pytest.approx(sum(map(max, outcomes)) / 8)
    assert written["toy/accuracy_ci_low"] <= written["toy/accuracy"] <= written["toy/accuracy_ci_high"]
    assert written["benchmark_average"] == written["toy/accuracy"]


def test_tensorboard_has_every_metric(toy: Toy):
    written = json.loads((toy.run_dir("eval_end") / "evaluation.json").read_text())[-1]["metrics"]
    events = EventFiles(toy.run_dir("eval_end") / "eval_tensorboard")
    assert set(events.tags()) == {f"eval/{name}" for name in written}
    (event,) = events.scalars("eval/toy/accuracy")
    assert event.value == pytest.approx(written["toy/accuracy"])
