"""The arithmetic task has correct answers, deterministic files, and a tokenizer and model that transformers loads."""

import json
import random
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.sft import SFTDataset
from megatron_prime.data.tokenizer import load_tokenizer, stop_token_ids
from megatron_prime.quickstart import arithmetic_task as example
from megatron_prime.quickstart.arithmetic import NUM_STEPS, sample_problem
from megatron_prime.rewards import get

FILES = ("sft.jsonl", "train.jsonl", "heldout.jsonl")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "megatron_prime.quickstart.arithmetic_task",
            "--output",
            str(folder),
            "--seed",
            "3",
        ],
        check=True,
        timeout=120,
    )
    return folder


def records(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def by_hand(text):
    """Return the running values of a prompt, by a separate evaluator that applies Python's operators word by word."""
    operators = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
    start, *rest = text.removesuffix(" =").split()
    values, value = [], int(start)
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        value = operators[operator](value, int(operand)) % 10
        values.append(value)
    return values


def test_answers_are_correct(task):
    for name in ("train.jsonl", "heldout.jsonl"):
        for row in records(task, name):
            values = by_hand(row["prompt"])
            assert len(values) == NUM_STEPS == 8
            assert row["answer"] == str(values[-1])


def test_files_have_their_sizes_and_no_problem_occurs_twice(task):
    prompts = [row["prompt"] for name in FILES for row in records(task, name)]
    assert [len(records(task, name)) for name in FILES] == [5000, 8192, 512]
    assert len(set(prompts)) == len(prompts)


def test_the_demonstrator_is_right_in_about_three_of_ten_problems(task):
    traces = records(task, "sft.jsonl")
    right = [trace["response"].split()[-1] == str(by_hand(trace["prompt"])[-1]) for trace in traces]
    assert 0.27 < sum(right) / len(right) < 0.35
    steps_right = steps = 0
    for trace in traces:
        value = trace["prompt"].split()[0]
        words = trace["prompt"].split()
        for place, given in enumerate(trace["response"].split()):
            (expected,) = by_hand(f"{value} {words[1 + 2 * place]} {words[2 + 2 * place]} =")
            steps_right += given == str(expected)
            steps += 1
            value = given  # an error propagates to later steps
    assert steps_right / steps == pytest.approx(1 - 0.3 * 0.5, abs=0.03)


def test_files_are_determined_by_the_seed(task, tmp_path):
    example.write_all(tmp_path / "same", 3)
    example.write_all(tmp_path / "other", 4)
    names = [path.relative_to(task) for path in task.rglob("*") if path.is_file()]
    assert {"model/config.json", "model/model.safetensors", "sft.jsonl"} <= set(map(str, names))
    for name in names:
        assert (task / name).read_bytes() == (tmp_path / "same" / name).read_bytes(), name
    for name in (*FILES, "model/model.safetensors"):
        assert (task / name).read_bytes() != (tmp_path / "other" / name).read_bytes(), name


def test_writing_the_model_does_not_change_the_random_state(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    example.write_model(tmp_path, 1)
    assert torch.equal(torch.rand(3), expected)


def test_the_tokenizer_has_one_token_per_word_and_refuses_unknown_words(task):
    tokenizer = load_tokenizer(task / "model")
    text = sample_problem(random.Random(0)).text
    token_ids = tokenizer.encode(text)
    assert len(token_ids) == 2 + 2 * NUM_STEPS == len(text.split())
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.decode([3, tokenizer.eos_token_id], skip_special_tokens=True) == "3"
    assert stop_token_ids(tokenizer, task / "model") == (tokenizer.eos_token_id,)
    assert len(tokenizer) == len(example.VOCABULARY) == 16
    with pytest.raises(Exception, match=r"(?i)unk"):
        tokenizer.encode("11")


def test_the_model_fits_two_tensor_parallel_ranks_and_is_untrained(task):
    model = AutoModelForCausalLM.from_pretrained(task / "model")
    config = model.config
    assert next(model.parameters()).dtype == torch.float32
    assert (config.num_hidden_layers, config.hidden_size) == (2, 64)
    assert config.num_attention_heads % 2 == config.num_key_value_heads % 2 == config.vocab_size % 2 == 0
    with torch.no_grad():
        logits = model(torch.tensor([load_tokenizer(task / "model").encode("3 + 4 =")])).logits
    entropy = torch.distributions.Categorical(logits=logits[0, -1]).entropy()
    assert entropy > 0.9 * torch.tensor(16.0).log()


def test_no_token_has_an_empty_embedding(task):
    """The first norm would multiply its gradient by a thousand where the policy samples it."""
    model = AutoModelForCausalLM.from_pretrained(task / "model")
    assert model.get_input_embeddings().weight.norm(dim=1).min() > 0.1


def test_the_data_files_load_and_correct_traces_verify(task):
    tokenizer = load_tokenizer(task / "model")
    config = DataConfig(train=(task / "train.jsonl",))
    prompts = PromptDataset.read(config.train, config, tokenizer, max_prompt_tokens=32)
    traces = SFTDataset.read([task / "sft.jsonl"], config, "response", tokenizer, max_tokens=32)
    assert (len(prompts), prompts.num_dropped, len(traces), traces.num_dropped) == (8192, 0, 5000, 0)
    assert all(len(example.response_ids) == 9 for example in traces.examples)
    verifier = get("exact_match")
    for prompt in prompts.prompts[:200]:
        values = by_hand(tokenizer.decode(list(prompt.token_ids)))
        response = " ".join(map(str, values))
        assert verifier.verify(response, prompt.answer) == 1.0
        assert verifier.verify(response + f" {(values[-1] + 1) % 10}", prompt.answer) == 0.0
