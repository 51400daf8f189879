import json

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.layouts import layout
from megatron_prime.data.reading import BATCH_ROWS, Fingerprint, ProblemReader, WeightGroups, prompt_text
from megatron_prime.data.rows import DataRow
from tests.support.tokenizers import byte_tokenizer


def reader_of(tmp_path, rows, **config):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataConfig(**config)
    return ProblemReader([path], settings, layout("columns", settings), byte_tokenizer())


def test_rows_keep_their_order_across_batches(tmp_path):
    rows = [{"prompt": f"q{n}", "answer": str(n)} for n in range(2 * BATCH_ROWS + 3)]
    problems = list(reader_of(tmp_path, rows))
    assert [problem.index for problem in problems] == list(range(len(rows)))
    assert [bytes_of(problem) for problem in problems] == [row["prompt"] for row in rows]
    assert [problem.answer for problem in problems] == [row["answer"] for row in rows]


def bytes_of(problem):
    return byte_tokenizer().decode(list(problem.prompt_ids))


def test_an_empty_result_is_explained(tmp_path):
    reader = reader_of(tmp_path, [{"prompt": ""}, {"prompt": "q", "answer": "1"}], on_bad_row="skip")
    assert len(list(reader)) == 1
    assert reader.empty_reason(1, 5).startswith(
        "of its 2 rows none is left: 1 longer than 5 tokens; 1 invalid"
    )


def test_the_source_takes_precedence_over_the_file(tmp_path):
    row = DataRow({}, tmp_path / "b.jsonl", 1)
    assert WeightGroups({"s": 1, "b.jsonl": 1}).group_of(row, "s") == "s"
    assert WeightGroups({"s": 1, "b.jsonl": 1}).group_of(row, "t") == "b.jsonl"
    assert WeightGroups({str(row.path): 1}).group_of(row, "t") == str(row.path)
    assert WeightGroups({}).group_of(row, "t") == ""
    with pytest.raises(ValueError, match=r"row 1: data\.weights .* \['s'\]"):
        WeightGroups({"s": 1}).group_of(row, "t")


def test_fingerprints_distinguish_records():
    def of(*records):
        fingerprint = Fingerprint()
        for record in records:
            fingerprint.add(*record)
        return fingerprint.hexdigest()

    texts = {
        of((1, (2, 3), "a")),
        of((1, (2,), "a")),
        of((1, (2, 3), "ab")),
        of(("ab", "c")),
        of(("a", "bc")),
        of(("a",), ("b",)),
        of(("b",), ("a",)),
        of(),
    }
    assert len(texts) == 8
    assert of((1, (2, 3), "a")) == of((1, [2, 3], "a"))


def test_prompt_text_joins_the_messages():
    assert prompt_text("q") == "q"
    assert prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]) == "s\nq"
