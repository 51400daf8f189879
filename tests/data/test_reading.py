import csv
import json
import math

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.layouts import layout
from megatron_prime.data.reading import (
    BATCH_ROWS,
    Fingerprint,
    ProblemReader,
    Scan,
    WeightGroups,
    prompt_text,
)
from megatron_prime.data.rows import DataRow
from megatron_prime.data.sft import demonstration_reader
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer


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


USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
GOOD = {"prompt": "2+2?", "answer": "4", "response": "4"}
UNUSABLE = {
    # changes of a row -> the reason, where prompts are read and where demonstrations are
    "empty prompt": ({"prompt": " "}, "'prompt' is empty", "'prompt' is empty"),
    "no prompt": ({"prompt": None}, "a NoneType; a prompt must be", "a NoneType; a prompt must be"),
    "empty messages": ({"prompt": []}, "an empty list", "an empty list"),
    "messages without text": ({"prompt": [{**USER, "content": ""}]}, "is empty", "is empty"),
    "messages of parts": (
        {"prompt": [{**USER, "content": [{"text": "a"}]}]},
        "must look like",
        "must look like",
    ),
    "one message": ({"prompt": USER}, "a dict; a prompt must be", "a dict; a prompt must be"),
    "JSON text of one message": ({"prompt": json.dumps(USER)}, "of one message", "of one message"),
    "Python text of messages": ({"prompt": str([USER])}, "text that is not JSON", "text that is not JSON"),
    "JSON text that was cut": ({"prompt": json.dumps([USER])[:-3]}, "not JSON", "not JSON"),
    "JSON text with an answer": (
        {"prompt": json.dumps([USER, ASSISTANT])},
        "ends with a message of the assistant",
        "ends with a message of the assistant",
    ),
    "messages with an answer": (
        {"prompt": [USER, ASSISTANT]},
        "ends with a message of the assistant",
        "ends with a message of the assistant",
    ),
    "half a character in the prompt": ({"prompt": "\ud835"}, "lone surrogate", "lone surrogate"),
    "half a character in a message": (
        {"prompt": [{**USER, "content": "\udc00"}]},
        "the prompt has half of a character",
        "the prompt has half of a character",
    ),
    "half a character in the answer, which nobody tokenizes": ({"answer": "\ud835"}, None, None),
    "half a character in the response": (
        {"response": "a \ud835"},
        None,
        "the response has half of a character",
    ),
    "empty response": ({"response": " "}, None, "a response must be text"),
    "missing response": ({"response": None}, None, "a response must be text"),
    "null answer": ({"answer": None}, "'answer' is null", None),
    "blank answer": ({"answer": " "}, "'answer' is empty", None),
    "answer NaN": ({"answer": math.nan}, "'answer' is nan", None),
    "answer infinite": ({"answer": -math.inf}, "'answer' is -inf", None),
    "no tests": ({"answer": []}, r"'answer' is \[\]", None),
    "half a character in the source": ({"source": "\ud835"}, "the source has half", "the source has half"),
}
"""Rows that cannot be used, wherever they are in a file."""


def readers_of(path, **changes):
    config = DataConfig(source_field="source", **changes)
    plain = ProblemReader([path], config, layout("columns", config), byte_tokenizer(CHAT_TEMPLATE))
    return plain, demonstration_reader([path], config, "response", byte_tokenizer(CHAT_TEMPLATE), None)


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_row_that_cannot_be_used_is_named_or_left_out(case, tmp_path):
    changes, *reasons = UNUSABLE[case]
    rows = [{"source": "a", **GOOD}] * (BATCH_ROWS + 3)
    rows[BATCH_ROWS + 1] = {"source": "a", **GOOD, **changes}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, reason in enumerate(reasons):
        for read in (lambda reader: [*reader], lambda reader: reader.scan(seconds=60)):
            if reason is None:
                read(readers_of(path)[number])
                continue
            with pytest.raises(ValueError, match=rf"a\.jsonl, row {BATCH_ROWS + 2}: .*{reason}"):
                read(readers_of(path)[number])
            reader = readers_of(path, on_bad_row="skip")[number]
            read(reader)
            assert (reader.num_rows, reader.bad_rows.num_rows) == (BATCH_ROWS + 3, 1)


def test_a_scan_reads_all_rows_or_as_many_as_the_time_allows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"source": f"s{i % 3}", **GOOD}) + "\n" for i in range(3 * BATCH_ROWS))
    )
    kinds = frozenset({("s0", ""), ("s1", ""), ("s2", "")})
    assert readers_of(path)[0].scan(seconds=60) == Scan(3 * BATCH_ROWS, True, kinds)
    assert readers_of(path)[0].scan(seconds=0) == Scan(BATCH_ROWS, False, kinds)


def test_json_text_of_messages_is_read_as_messages(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt", "answer"], [json.dumps([USER]), "4"], ["[1, 2] are {3}", "4"]])
    config = DataConfig()
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    problems = [*ProblemReader([path], config, layout("columns", config), tokenizer)]
    texts = [tokenizer.decode(list(problem.prompt_ids)) for problem in problems]
    assert texts == ["<|user|>2+2?<|assistant|>", "[1, 2] are {3}"]
