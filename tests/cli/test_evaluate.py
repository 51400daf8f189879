import json

from toy_runs import NUM_STEPS, Toy, records


def evaluation_in_training(toy: Toy, step: int) -> dict[str, float]:
    record = next(record for record in records(toy.run_dir("single")) if record["step"] == step)
    return {name.removeprefix("eval/"): value for name, value in record.items() if name.startswith("eval/")}


def test_eval_equals_the_evaluation_inside_training_before_the_first_step(toy: Toy):
    written = json.loads((toy.run_dir("eval_start") / "evaluation.json").read_text())
    assert written == evaluation_in_training(toy, 0)
    assert written["num_prompts"] == 32


def test_eval_of_the_export_equals_the_last_evaluation_inside_training(toy: Toy):
    written = json.loads((toy.run_dir("eval_end") / "evaluation.json").read_text())
    assert written == evaluation_in_training(toy, NUM_STEPS)


def test_eval_prints_a_table_and_where_it_wrote(toy: Toy):
    code, output = toy.facts["eval start"]
    assert code == 0
    assert "sft, temperature 0" in output
    for name in ("accuracy", "pass_at_2", "mean_response_tokens", "eval_start/evaluation.json"):
        assert name in output
