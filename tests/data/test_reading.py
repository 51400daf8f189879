import csv
import datetime
import json
import math
from decimal import Decimal

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.layouts import answer_text, layout
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
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer


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
    "half a character in the answer": ({"answer": "\ud835"}, "the answer has half of a character", None),
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
    "NUL in the prompt": ({"prompt": "a\0b"}, "the prompt has a NUL", "the prompt has a NUL"),
    "NUL in the answer": ({"answer": "4\0"}, "the answer has a NUL", None),
    "NUL in the response": ({"response": "4\0"}, None, "the response has a NUL"),
    "answer NaN as text": ({"answer": "NaN"}, "the text 'NaN'", None),
    "answer <NA>": ({"answer": "<NA>"}, "the text '<NA>'", None),
    "answer of nothing visible": ({"answer": "\u200b"}, "'answer' is empty", None),
    "a message as answer": ({"answer": [ASSISTANT]}, "'answer' is a list of chat messages", None),
    "a message as text as answer": ({"answer": json.dumps([ASSISTANT])}, "chat messages as text", None),
    "a missing prompt as text": ({"prompt": "nan"}, "as a missing value is written", "as a missing value"),
    "a missing response as text": ({"response": "nan"}, None, "'response' is 'nan'"),
    "only the mark of a solution": ({"answer": "#### 4"}, r"data\.layout = 'gsm8k' reads it", None),
    "no answer in a list": ({"answer": [None]}, "'answer' is null", None),
    "NaN in a list": ({"answer": ["4", math.nan]}, "'answer' is nan", None),
    "blank answer in a list": ({"answer": [""]}, "'answer' is empty", None),
    "empty list in a list": ({"answer": [[]]}, r"'answer' is \[\]", None),
    "deep answer": ({"answer": json.loads("[" * 99 + "4" + "]" * 99)}, "64 levels deep", None),
    "worked solution": ({"answer": "2 + 2 = 4.\n#### 4"}, r"data\.layout = 'gsm8k' reads it", None),
    "empty source": ({"source": ""}, "'source' is ''; it must be a name", "it must be a name"),
    "source null": ({"source": None}, "'source' is None", "'source' is None"),
    "source NaN": ({"source": math.nan}, "'source' is nan", "'source' is nan"),
    "a list as source": ({"source": ["a"]}, "it must be a name", "it must be a name"),
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


@pytest.mark.parametrize(
    "value",
    [
        b"42",
        {"a": b"42"},
        {"a": Decimal("1.5")},
        [datetime.date(2026, 1, 1)],
        datetime.date(2026, 1, 1),
        {"a": [()]},
    ],
)
def test_answers_of_types_that_are_no_json_are_bad_rows(value, tmp_path):
    with pytest.raises(
        ValueError, match=r"row 1: 'answer' (is of the type|has a) (bytes|Decimal|date|tuple)"
    ):
        answer_text(DataRow({"answer": value}, tmp_path / "a.parquet", 1), "answer")


ABSENT = {
    # row, settings -> advice
    "gsm8k": ({"question": "q", "answer": "2+2=4\n#### 4"}, {}, "data.layout = 'gsm8k' fits this row"),
    "math": ({"problem": "p", "solution": r"so \boxed{4}"}, {}, "data.layout = 'math' fits this row"),
    "eurus": (
        {"prompt": "p", "reward_model": {"ground_truth": "4"}, "data_source": "s", "ability": "math"},
        {},
        "data.layout = 'eurus' fits this row",
    ),
    "columns": ({"prompt": "p", "answer": "4"}, {"layout": "gsm8k"}, "data.layout = 'columns' fits this row"),
    "columns of another name": (
        {"prompt": "p", "answer": "4"},
        {"answer_field": "a"},
        "name the columns of this file",
    ),
    "another layout without its column": (
        {"prompt": "p", "reward_model": {"style": "rule"}, "data_source": "s"},
        {"layout": "eurus"},
        "with data.layout = 'columns', name the columns",
    ),
    "verl": (
        {"prompt": "p", "reward_model": {"ground_truth": "4"}, "data_source": "s"},
        {"layout": "eurus"},
        "data.layout = 'verl' fits this row",
    ),
    "nothing": ({"x": "p"}, {}, "name the columns of this file by data.prompt_field"),
}


@pytest.mark.parametrize("case", ABSENT)
def test_absent_columns_suggest_the_layout_that_fits(case, tmp_path):
    row, settings, advice = ABSENT[case]
    for read in (lambda reader: [*reader], lambda reader: reader.scan(seconds=60)):
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(row) + "\n")
        config = DataConfig(**settings)
        reader = ProblemReader([path], config, layout(config.layout, config), byte_tokenizer())
        with pytest.raises(
            ValueError, match=r"row 1: n.* the fields are|row 1: none of the columns"
        ) as caught:
            read(reader)
        assert advice in str(caught.value)
        assert "on_bad_row" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "messages_field", "advice"),
    [
        ({"messages": [USER, ASSISTANT]}, None, "sft.messages_field = 'messages' fits this row"),
        (
            {"conversation": [USER, ASSISTANT]},
            "messages",
            "sft.messages_field = 'conversation' fits this row",
        ),
        ({"problem": "p", "response": "r"}, None, "sft.layout = 'math' fits this row"),
        ({"instruction": "p", "output": "r"}, None, "by data.prompt_field and sft.response_field"),
        ({"prompt": "p", "output": "r"}, None, "by data.prompt_field and sft.response_field"),
    ],
)
def test_absent_columns_of_demonstrations_suggest_settings(row, messages_field, advice, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    reader = demonstration_reader(
        [tmp_path / "a.jsonl"], DataConfig(), "response", byte_tokenizer(CHAT_TEMPLATE), messages_field
    )
    with pytest.raises(ValueError, match="row 1: no field") as caught:
        list(reader)
    assert advice in str(caught.value)


def test_integers_may_be_long(tmp_path):
    row = DataRow({"answer": 10**4000}, tmp_path / "a.jsonl", 1)
    assert answer_text(row, "answer") == "1" + "0" * 4000


def test_a_missing_template_is_not_cured_by_skipping_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "prompt": [USER]}) + "\n")
    for policy in ("stop", "skip"):
        config = DataConfig(on_bad_row=policy)
        with pytest.raises(ValueError, match="row 2: the tokenizer has no chat template") as caught:
            list(ProblemReader([path], config, layout("columns", config), byte_tokenizer()))
        assert "on_bad_row" not in str(caught.value)


@pytest.mark.parametrize("content", ["", '{"x": 1}\n', "{\n"])
def test_a_file_of_several_without_usable_rows_is_named(content, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "b.jsonl").write_text(content)
    config = DataConfig(on_bad_row="skip")
    for read in (lambda reader: [*reader], lambda reader: reader.scan(seconds=60)):
        paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        reader = ProblemReader(paths, config, layout("columns", config), byte_tokenizer())
        with pytest.raises(
            ValueError, match=r"b\.jsonl has no rows|of its 1 rows none is left: 1 invalid, .*b\.jsonl"
        ):
            read(reader)


@pytest.mark.parametrize("place", ["prompt", "response"])
def test_a_text_on_which_the_tokenizer_fails_is_a_bad_row(place, tmp_path):
    rows = [{"prompt": "one", "response": "two"} for _ in range(5)]
    rows[3][place] = "three"  # this tokenizer has no token for unknown words
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reader(policy):
        config = DataConfig(on_bad_row=policy)
        return demonstration_reader([path], config, "response", word_tokenizer(["one", "two"]), None)

    skipping = reader("skip")
    assert [problem.index for problem in skipping] == [0, 1, 2, 4]
    assert "row 4: the tokenizer fails on it" in skipping.bad_rows.latest
    with pytest.raises(ValueError, match="row 4: the tokenizer fails on it"):
        list(reader("stop"))


@pytest.mark.parametrize(
    ("template", "prompt", "advice"),
    [
        (CHAT_TEMPLATE, "q<eos>", "leave it out"),
        ("{% for m in messages %}{{ m['content'] }}<eos>\n{% endfor %}", [USER], "must begin the answer"),
    ],
)
def test_a_prompt_that_ends_with_an_end_of_sequence_is_a_bad_row(template, prompt, advice, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**GOOD, "prompt": prompt}) + "\n")
    config = DataConfig()
    with pytest.raises(
        ValueError, match=f"row 1: the prompt ends with the end-of-sequence token <eos>.*{advice}"
    ):
        list(ProblemReader([path], config, layout("columns", config), byte_tokenizer(template)))


def test_another_template_is_advised_where_the_first_row_shows_that_it_is_needed(tmp_path):
    template = CHAT_TEMPLATE + "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    rows = [{**GOOD, "prompt": [{"role": "system", "content": "s"}, USER]}, {**GOOD, "prompt": [USER]}]
    config = DataConfig()
    for order, is_advised in ((rows, True), (rows[::-1], False)):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in order))
        with pytest.raises(ValueError, match="the chat template fails on this prompt: one only") as caught:
            list(ProblemReader([path], config, layout("columns", config), byte_tokenizer(template)))
        assert ("data.chat_template_file" in str(caught.value)) == is_advised


def test_a_message_that_the_template_leaves_out_is_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({**GOOD, "prompt": [{"role": "developer", "content": "Be short."}, USER]}) + "\n"
    )
    config = DataConfig()
    template = CHAT_TEMPLATE.replace("messages %}", "messages if message['role'] == 'user' %}")
    with pytest.raises(ValueError, match="row 1: the chat template leaves out the message of the developer"):
        list(ProblemReader([path], config, layout("columns", config), byte_tokenizer(template)))


def test_an_answer_that_no_verifier_can_use_is_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "p{row}", "answer": "{row}", "source": "s"}}\n' for row in range(3))
    )

    def check(source, ability, answer):
        assert (source, ability) == ("s", "")
        if answer == "1":
            raise ValueError("no tests")

    for policy in ("stop", "skip"):
        config = DataConfig(on_bad_row=policy, source_field="source")
        rows = layout("columns", config)
        reader = ProblemReader([path], config, rows, byte_tokenizer(), check_answer=check)
        if policy == "stop":
            with pytest.raises(ValueError, match=r"a.jsonl, row 2: no tests"):
                list(reader)
            with pytest.raises(ValueError, match=r"a.jsonl, row 2: no tests"):
                ProblemReader([path], config, rows, byte_tokenizer(), check_answer=check).scan(60.0)
        else:
            assert [problem.answer for problem in reader] == ["0", "2"]
            assert reader.bad_rows.num_rows == 1
