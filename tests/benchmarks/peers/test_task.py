"""All trainers of the comparison have the same model, prompts and reward."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers import task

TRL_SCRIPT = Path(task.__file__).with_name("trl_trainer.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers")
    task.write(path, task.WORKLOADS["0.1M"])
    return path


def end_probabilities(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokens = torch.randint(200, (4, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits.softmax(-1)[..., model.generation_config.eos_token_id]


def test_every_token_ends_a_response_with_about_the_same_probability(folder):
    probabilities = end_probabilities(folder)
    expected = 1 / task.WORKLOADS["0.1M"].mean_response_tokens
    assert expected / 1.5 < probabilities.min() <= probabilities.max() < expected * 1.5


def test_no_token_ends_a_response_where_lengths_are_equal(tmp_path):
    task.write(tmp_path, task.WORKLOADS["0.1M-equal"])
    assert end_probabilities(tmp_path).max() < 1e-9


def test_prompts_are_within_their_limit_and_of_known_words(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for line in (folder / "train.jsonl").read_text().splitlines():
        tokens = tokenizer(json.loads(line)["prompt"]).input_ids
        assert 8 <= len(tokens) <= task.MAX_PROMPT_TOKENS
        assert tokenizer.unk_token_id not in tokens


@pytest.mark.parametrize(("text", "right"), [("w1 w2", 0.0), ("w1 w3", 1.0), ("", 1.0), ("w1 <eos> w2", 0.0)])
def test_both_sides_give_the_same_reward(text, right):
    # TRL's script cannot be imported here, since it imports TRL: the function is taken from its source.
    source = TRL_SCRIPT.read_text()
    function = re.search(r"def reward\(.*?(?=\n\n\n)", source, re.DOTALL)
    found = {}
    exec(function.group(), found)
    assert [task.verify(text, "even")] == found["reward"]([text]) == [right]
