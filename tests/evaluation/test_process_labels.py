import json
from pathlib import Path

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.evaluation.process_labels import read_pairs, read_processbench
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer

SAMPLES = Path(__file__).parents[2] / "examples" / "data"


def test_processbench_tokens_belong_to_the_labelled_steps():
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    rows = [json.loads(line) for line in (SAMPLES / "processbench.jsonl").read_text().splitlines()]
    solutions = list(read_processbench(SAMPLES / "processbench.jsonl", DataConfig(), tokenizer))
    assert [solution.label for solution in solutions] == [-1, 1]
    for solution, row in zip(solutions, rows, strict=True):
        assert solution.num_steps == len(row["steps"])
        assert tokenizer.decode(list(solution.prompt_ids)) == f"<|user|>{row['problem']}<|assistant|>"
        for number, step in enumerate(row["steps"]):
            step_tokens = [
                token
                for token, owner in zip(solution.response_ids, solution.token_steps, strict=True)
                if owner == number
            ]
            assert tokenizer.decode(step_tokens).strip() == step


def test_pairs_are_tokenized():
    tokenizer = byte_tokenizer()
    first, _ = read_pairs(SAMPLES / "pairs.jsonl", DataConfig(), tokenizer)
    texts = [tokenizer.decode(list(ids)) for ids in (first.prompt_ids, first.chosen_ids, first.rejected_ids)]
    assert texts == ["What is 3 + 4?", "3 + 4 = 7.", "3 + 4 = 8."]
    assert first.where.endswith("pairs.jsonl, row 1")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem": ""}, "'problem' must be a non-empty string"),
        ({"steps": []}, "'steps' must be a list"),
        ({"steps": ["a", ""]}, "'steps' must be a list"),
        ({"label": 2}, "'label' is 2: it must be -1, or the index of one of the 2 steps"),
        ({"label": True}, "'label' is True"),
        ({"label": None}, "'label' is None"),
        ({"label": "1"}, "'label' is '1'"),
        ({"steps": '["a", "b"]'}, "'steps' must be a list"),
        ({"steps": ["a", None]}, "'steps' must be a list"),
        ({"steps": ["a", "\ud835"]}, "the steps has half of a character"),
        ({"steps": ["a", "b\0"]}, "the steps has a NUL character"),
        ({"problem": "\ud835"}, "the problem has half of a character"),
        ({"problem": "\u200b"}, "'problem' must be a non-empty string"),
        ({"problem": ["p"]}, "'problem' must be a non-empty string"),
    ],
)
def test_malformed_solutions_are_refused_with_file_and_row(tmp_path, changes, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"problem": "p", "steps": ["a", "b"], "label": 0} | changes) + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 1: {reason}"):
        list(read_processbench(path, DataConfig(), byte_tokenizer()))


def test_malformed_pairs_are_refused_with_file_and_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "c", "rejected": " "}) + "\n")
    with pytest.raises(ValueError, match="row 1: 'rejected' must be a non-empty string"):
        list(read_pairs(path, DataConfig(), byte_tokenizer()))
    path.write_text(
        json.dumps({"prompt": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r"})
    )
    with pytest.raises(ValueError, match="row 1: the tokenizer has no chat template"):
        list(read_pairs(path, DataConfig(), byte_tokenizer()))


USER = {"role": "user", "content": "p"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chosen": None}, "'chosen' must be a non-empty string"),
        ({"chosen": [USER, {"role": "assistant", "content": "c"}]}, "'chosen' must be a non-empty string"),
        ({"chosen": json.dumps([USER])}, "'chosen' is chat messages as text"),
        ({"rejected": "r \udc00"}, "the rejected has half of a character"),
        ({"rejected": "three"}, "'rejected': the tokenizer fails on it"),
        ({"prompt": "three"}, "the tokenizer fails on it"),
        ({"prompt": [USER, {"role": "assistant", "content": "c"}]}, "ends with a message of the assistant"),
        ({"prompt": "\ud835"}, "the prompt has half of a character"),
        ({"prompt": json.dumps(USER)}, "JSON text of one message"),
    ],
)
def test_pairs_that_cannot_be_meant_are_refused(tmp_path, changes, reason):
    path = tmp_path / "a.jsonl"
    good = {"prompt": "one", "chosen": "two", "rejected": "one"}
    tokenizer = word_tokenizer(["one", "two"])
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | changes) + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 2: .*{reason}"):
        list(read_pairs(path, DataConfig(), tokenizer))
