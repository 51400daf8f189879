"""The tasks of several turns have right answers, and demonstrations with the mistakes that they name."""

import json

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.sft import SFTDataset
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.environments.protocol import Response, Row
from megatron_prime.quickstart import turn_tasks
from megatron_prime.quickstart.hidden_numbers import lookup
from megatron_prime.quickstart.observed_chain import ObservedChain

SIZES = turn_tasks.Sizes(sft=600, train=100, heldout=50)
CHAT_TEMPLATE = {"chain": "never", "tools": "auto"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    for name in turn_tasks.TASKS:
        turn_tasks.write_task(root / name, name, 3, SIZES)
    return root


def rows(folder, name, file):
    return [json.loads(line) for line in (folder / name / f"{file}.jsonl").read_text().splitlines()]


def test_right_chains_get_the_outcome_one(folder):
    for row in rows(folder, "chain", "train")[:50]:
        start, first = row["prompt"].split()
        environment = ObservedChain()
        environment.reset(Row([{"role": "user", "content": row["prompt"]}], row["answer"], metadata=row))
        value, operation = int(start), first
        for turn in range(16):
            # Python's own arithmetic is the oracle.
            value = eval(f"({value} {operation[0].replace('x', '*')} {operation[1:]}) % 10")
            step = environment.step(Response(str(value), [], "stop", turn))
            operation = step.messages[0]["content"].split()[1] if step.messages else ""
        assert step.outcome == 1.0 and str(value) == row["answer"]


def test_demonstrations_of_the_chain_are_what_its_environment_says(folder):
    for row in rows(folder, "chain", "sft")[:50]:
        messages = row["messages"]
        operations = [message["content"].split()[1] for message in messages[::2]]
        environment = ObservedChain(turn_tasks.NOISE)
        environment.reset(Row(messages[:1], "0", metadata={"operations": " ".join(operations)}))
        steps = [environment.step(Response(one["content"], [], "stop", 0)) for one in messages[1::2]]
        assert [step.messages[0] for step in steps[:-1]] == messages[2::2]


def test_about_one_chain_in_seven_is_right_at_the_start(folder):
    right = 0
    demonstrations = rows(folder, "chain", "sft")
    for row in demonstrations:
        value = int(row["messages"][0]["content"].split()[0])
        for message in row["messages"][::2]:
            operation = message["content"].split()[1]
            value = eval(f"({value} {operation[0].replace('x', '*')} {operation[1:]}) % 10")
        right += row["messages"][-1]["content"] == str(value)
    assert 0.1 < right / len(demonstrations) < 0.22


def test_held_out_keys_are_looked_up_nowhere_else(folder):
    keys = {
        file: {row["prompt"][0]["content"] for row in rows(folder, "tools", file)}
        for file in ("train", "heldout")
    }
    shown = {row["messages"][0]["content"] for row in rows(folder, "tools", "sft")}
    assert not keys["heldout"] & (keys["train"] | shown)
    for row in rows(folder, "tools", "heldout"):
        assert lookup(row["prompt"][0]["content"]) == row["answer"]


def test_demonstrated_calls_are_right_as_often_as_the_mistakes_leave(folder):
    demonstrations = rows(folder, "tools", "sft")
    right = [
        row
        for row in demonstrations
        if row["messages"][-1]["content"] == lookup(row["messages"][0]["content"])
    ]
    # Wrong keys and guesses hit the right digit in one case of ten.
    expected = 0.4 + 0.1 * (0.25 + 0.2 * 0.9) + 0.2 * 0.1
    assert len(right) / len(demonstrations) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", sorted(turn_tasks.TASKS))
def test_the_files_load_without_unknown_words(folder, name):
    tokenizer = load_tokenizer(folder / name / "model")
    config = DataConfig(chat_template=CHAT_TEMPLATE[name])
    unknown = tokenizer.unk_token_id
    examples = SFTDataset.read(
        [folder / name / "sft.jsonl"], config, "response", tokenizer, turn_tasks.MAX_POSITIONS, "messages"
    )
    assert (len(examples), examples.num_dropped) == (600, 0)
    assert not any(unknown in example.prompt_ids + example.response_ids for example in examples.examples)
    prompts = PromptDataset.read([folder / name / "heldout.jsonl"], config, tokenizer, 16)
    assert prompts.num_dropped == 0
    assert not any(unknown in prompt.token_ids for prompt in prompts.prompts)


def test_files_are_determined_by_the_seed(folder):
    for name, (_, _, rows_of) in turn_tasks.TASKS.items():
        again, other = rows_of(3, SIZES), rows_of(4, SIZES)
        for file in ("sft", "train", "heldout"):
            assert rows(folder, name, file) == again[file] != other[file]
