"""SFT logs in its own folder, stops and resumes exactly, and measures a held-out loss."""

import json
import re
import subprocess

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import toy_worker
from tests.support.distributed_runner import run_distributed
from tests.support.metric_names import undocumented
from tests.support.toy_runs import Toy, finish, records, weights


def test_sft_lowers_the_loss_and_logs_in_its_own_folder(toy: Toy):
    history = records(toy.run_dir("sft_run") / "sft_log")
    losses = [record["sft/loss"] for record in history]
    assert [record["step"] for record in history] == list(range(1, 151))
    assert losses[-1] < losses[0] - 0.5
    assert undocumented(history[0].keys() - {"step"}) == []
    assert not (toy.run_dir("sft_run") / "metrics.jsonl").exists()


def test_transformers_loads_the_checkpoint(toy: Toy):
    model = AutoModelForCausalLM.from_pretrained(toy.folder / "sft")
    tokenizer = AutoTokenizer.from_pretrained(toy.folder / "sft")
    prompt = tokenizer("1 + 2 - 3 x 7 =", return_tensors="pt")
    assert model.generate(**prompt, min_new_tokens=3, max_new_tokens=3, do_sample=False).shape[1] == 11
    assert json.loads((toy.folder / "sft/config.json").read_text())["model_type"] == "qwen3"


def test_an_existing_output_is_refused_before_any_work(toy: Toy):
    finished: subprocess.CompletedProcess[str] = finish(toy.folder, "sft", "run.toml")
    assert finished.returncode == 2
    assert "sft exists already: remove it, or set sft.output to another folder" in finished.stderr


@pytest.fixture(scope="module")
def runs(toy: Toy) -> dict:
    """Return the results of toy_worker.sft_runs."""
    (found,) = run_distributed(toy_worker.sft_runs, 1, str(toy.folder))
    return found


def test_a_stopped_sft_resumes_and_equals_an_uninterrupted_one_bit_for_bit(toy: Toy, runs):
    code, output = runs["stopped"]
    assert code == 75, output
    assert re.search(
        r"stopped after step \d+ of 16, as asked; the same command resumes after step \d+\n", output
    )
    code, output = runs["resumed"]
    assert code == 0, output
    assert "resuming after step" in output
    whole, parts = toy.run_dir("sft_whole"), toy.run_dir("sft_parts")
    assert records(parts / "sft_log") == records(whole / "sft_log")
    assert weights(parts / "hf") == weights(whole / "hf")


def test_a_finished_sft_says_so_and_keeps_its_output(runs):
    code, output = runs["finished"]
    assert code == 0
    assert "sft_log is finished: resuming after step 16 of 16 leaves nothing to do" in output
    assert "its policy is in sft_parts/hf" in output


def test_a_resumed_sft_keeps_its_model_and_date(toy: Toy, runs):
    code, output = runs["another model"]
    assert code == 2
    assert "model.path = sft: " in output
    assert "weights of the policy are not those of task/model" in output
    saved = json.loads((toy.run_dir("sft_parts") / "sft_log" / "config.json").read_text())
    assert saved["data"]["date"] is not None


def test_the_held_out_loss_equals_hf_and_is_measured_when_asked(toy: Toy, runs):
    measured = {
        record["step"]: record["eval/loss"]
        for record in records(toy.run_dir("sft_whole") / "sft_log")
        if "eval/loss" in record
    }
    assert list(measured) == [0, 8, 16]
    assert measured[16] == pytest.approx(runs["hf loss"], abs=1e-4)
    assert measured[16] < measured[0]


def test_the_start_shows_the_batch_arithmetic(runs):
    _, output = runs["whole"]
    assert "16 steps x 8 = 128 responses" in output
    assert "20 held-out demonstrations" in output
    assert "held-out loss after 16 steps: " in output
