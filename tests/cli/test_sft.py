import json
import subprocess

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.metric_names import undocumented
from tests.support.toy_runs import Toy, finish, records


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
