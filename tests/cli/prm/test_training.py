"""train-prm trains on a run's log, resumes exactly, and a run starts from its result with the same rewards."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.cli.prm import training_worker
from tests.support.distributed_runner import run_distributed
from tests.support.metric_names import undocumented
from tests.support.toy_runs import Toy, records, rollouts, weights


@pytest.fixture(scope="module")
def runs(toy: Toy) -> dict:
    """Return the results of training_worker.prm_runs."""
    (found,) = run_distributed(training_worker.prm_runs, 1, str(toy.folder))
    return found


def test_it_measures_the_prm_on_responses_that_it_does_not_train_on(toy: Toy, runs):
    code, output = runs["whole"]
    assert code == 0, output
    history = records(toy.run_dir("prm_whole") / "prm_log")
    assert [record["step"] for record in history] == list(range(9))
    measured = {record["step"]: record["eval/prm_ce"] for record in history if "eval/prm_ce" in record}
    assert list(measured) == [0, 4, 8]
    assert measured[0] == pytest.approx(0.693147, abs=1e-5) and measured[8] != measured[0]
    assert undocumented(set().union(*history) - {"step"}) == []
    assert re.search(r"8 steps x 4 = 32 groups, \d\.\d\d epochs", output)
    last = output.splitlines()[-1]
    assert re.match(
        r"PRM on held-out responses: pair accuracy [\d.]+ of \d+ pairs, .* before the first step", last
    )


def test_check_reads_the_same_responses(runs):
    code, output = runs["check"]
    assert code == 0, output
    note = re.search(r"\d+ responses in \d+ groups, of \d+ prompts, \d+ of them held out", output)
    assert note and note[0] in runs["whole"][1]
    assert output.endswith("the configuration is sound for train-prm\n")


def test_a_stopped_run_resumes_and_equals_an_uninterrupted_one_bit_for_bit(toy: Toy, runs):
    code, output = runs["stopped"]
    assert code == 75, output
    code, output = runs["resumed"]
    assert code == 0, output
    assert "resuming after step" in output
    whole, parts = toy.run_dir("prm_whole"), toy.run_dir("prm_parts")
    assert records(parts / "prm_log") == records(whole / "prm_log")
    assert weights(parts / "prm") == weights(whole / "prm")


def test_other_responses_are_refused_on_resuming(runs):
    code, output = runs["other data"]
    assert code == 1
    assert "this checkpoint was written with another data set" in output


def test_a_finished_run_says_so(runs):
    code, output = runs["finished"]
    assert code == 0
    assert "leaves nothing to do; its prm is in prm_parts/prm" in output


def test_a_run_from_it_needs_its_reference(runs):
    code, output = runs["refused"]
    assert code == 2
    assert "this PRM was trained with the reference" in output


def test_the_first_rewards_of_a_run_are_the_log_ratio_of_the_trained_prm(toy: Toy, runs):
    """By Hugging Face's models, one response at a time: the online PRM starts where train-prm ended."""
    code, output = runs["warm"]
    assert code == 0, output
    folders = toy.run_dir("prm_whole") / "prm", toy.folder / "sft"
    prm, reference = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    rows = [row for row in rollouts(toy.run_dir("warm"))[1] if row["process_rewards"] is not None]
    beta = json.loads((toy.run_dir("warm") / "config.json").read_text())["prm"]["beta"]
    for row in rows[:4]:
        prompt, response = row["prompt_token_ids"], row["response_token_ids"]
        tokens = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            of_prm, of_reference = (
                model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(response)), response]
                for model in (prm, reference)
            )
        rewards = beta * (of_prm - of_reference)
        assert rewards.abs().max() > 1e-6
        assert row["process_rewards"] == pytest.approx(rewards.tolist(), abs=1e-5)
