"""Reading of responses as text, and the groups that they form."""

import json
import math
from pathlib import Path

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.responses.logged import GroupReader
from megatron_prime.data.responses.text import TextReader
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer

EOS = 256
TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def response(prompt="1+1=", text="2", outcome=1.0, **others):
    return {"prompt": prompt, "response": text, "outcome_reward": outcome} | others


def text_reader(**sections) -> TextReader:
    needed = {"run_dir": "runs/a", "model": {"path": "m"}, "trainer": {"num_steps": 1}}
    return TextReader(PrimeConfig.model_validate(needed | sections), TOKENIZER)


def text_of(token_ids) -> str:
    return TOKENIZER.decode(list(token_ids))


def test_prompts_and_responses_are_read_as_demonstrations_are(tmp_path):
    chat = [{"role": "user", "content": "q"}]
    path = write(
        tmp_path / "a.jsonl",
        response(outcome=0.25),
        response(prompt=chat, text="a b", outcome=None),
        response(text="cut", outcome=0, finish_reason="length"),
    )
    found = list(text_reader().responses(path))
    assert [text_of(prompt_ids) for prompt_ids, _ in found] == ["1+1=", "<|user|>q<|assistant|>", "1+1="]
    first, unknown, cut_off = (each for _, each in found)
    assert (text_of(first.token_ids[:-1]), first.token_ids[-1], first.outcome) == ("2", EOS, 0.25)
    assert math.isnan(unknown.outcome)
    assert (text_of(cut_off.token_ids), cut_off.outcome) == ("cut", 0.0), "it never ended"


def test_columns_and_conversations_are_named_as_for_sft(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "1", "a": "2", "outcome_reward": 1})
    reader = text_reader(data={"prompt_field": "q"}, sft={"response_field": "a"})
    ((prompt_ids, found),) = reader.responses(path)
    assert (text_of(prompt_ids), text_of(found.token_ids[:-1])) == ("1", "2")
    messages = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    row = {"chat": [{"role": role, "content": text} for role, text in messages], "outcome_reward": 1}
    path = write(tmp_path / "b.jsonl", row)
    ((_, found),) = text_reader(sft={"messages_field": "chat"}).responses(path)
    assert len(found.turns) == 2
    assert found.turns[-1].end == len(found.token_ids)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "response": "a"}, "no field 'outcome_reward'"),
        (response(outcome=1.5), r"'outcome_reward' is 1\.5; it must be a number from 0 to 1, or null"),
        (response(outcome="right"), "'outcome_reward' is 'right'; it must be a number"),
        (response(outcome=[1]), r"'outcome_reward' is \[1\]; it must be a number"),
        (response(text=""), "a response must be text that is not empty"),
    ],
)
def test_an_error_names_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", response(), row)
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 2: .*{message}"):
        list(text_reader().responses(path))
    reader = text_reader(data={"on_bad_row": "skip"})
    ((_, kept),) = reader.responses(path)
    assert kept.outcome == 1.0
    assert reader.notes[-2] == "1 invalid rows were dropped:" and "row 2" in reader.notes[-1]


def test_all_responses_to_a_prompt_are_a_group(tmp_path):
    rows = [response(), response("2+2=", "4"), response(text="3", outcome=0), response("long" * 9, "x")]
    path = write(tmp_path / "a.jsonl", *rows, response(text="?", outcome=None))
    reader = GroupReader("any", 300, 20, text_reader(data={"dedup": "exact"}))
    groups = [(text_of(prompt), [each.outcome for each in group]) for prompt, group in reader.groups(path)]
    assert groups == [("1+1=", [1.0, 0.0]), ("2+2=", [1.0])]
    assert reader.log_lines()[:2] == [
        "left out: 1 responses without an outcome, as after verifier errors",
        "left out: 1 responses longer than 20 tokens with their prompt",
    ]
