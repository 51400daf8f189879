"""Reads the sample files of the examples, whose answers are known, with each layout."""

import json
from pathlib import Path
from typing import get_args

import pytest

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.data.layouts import LAYOUTS, answer_text, layout
from megatron_prime.data.rows import DataRow, read_rows

SAMPLES = Path(__file__).parents[2] / "examples" / "data"


def read(name, file):
    found = layout(name, DataConfig())
    return [
        (found.prompt(row), found.answer(row), found.source(row), found.ability(row))
        for row in read_rows(SAMPLES / file)
    ]


class Recorder(dict):
    """The fields of a row, which know which of them were read."""

    def __init__(self, fields):
        super().__init__(fields)
        self.read = set()

    def get(self, name, default=None):
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k", "gsm8k.jsonl"),
        ("math", "amc.csv"),
        ("math", "aime24.jsonl"),
        ("olympiadbench", "olympiadbench.jsonl"),
        ("leetcode", "leetcode.jsonl"),
        ("livecodebench", "livecodebench.jsonl"),
    ],
)
def test_a_layout_declares_the_columns_that_it_reads(name, file):
    found = layout(name, DataConfig())
    for row in read_rows(SAMPLES / file):
        fields = Recorder(row.fields)
        recorded = DataRow(fields, row.path, row.number)
        for read_part in (found.prompt, found.answer, found.source, found.ability):
            read_part(recorded)
        # The worked solution may give the answer, and is metadata nevertheless.
        assert fields.read & row.fields.keys() <= {*found.columns, "solution", "Solution"}


def test_every_name_of_the_configuration_has_a_layout():
    assert {*LAYOUTS, "columns"} == set(get_args(LayoutName))


@pytest.mark.parametrize(
    ("name", "file", "answers", "source"),
    [
        ("gsm8k", "gsm8k.jsonl", ["43", "1200", "4"], "gsm8k"),
        ("math", "math.jsonl", ["15", r"\frac{1}{2}", r"\{-3, 3\}"], "math"),
        ("math", "math500.jsonl", ["120", r"\frac{1}{3}"], "math"),
        ("math", "aime24.jsonl", ["400", "1"], "math"),
        ("math", "amc.csv", ["132", "9"], "math"),
        ("math", "minerva.jsonl", ["2.5", "9"], "math"),
        ("olympiadbench", "olympiadbench.jsonl", ["0, 4", "2"], "olympiadbench"),
    ],
)
def test_mathematics_layouts_find_the_answers(name, file, answers, source):
    rows = read(name, file)
    assert [answer for _, answer, _, _ in rows] == answers
    assert {(where, ability) for _, _, where, ability in rows} == {(source, "math")}
    assert all(isinstance(prompt, str) and prompt.endswith(("?", ".", "$")) for prompt, _, _, _ in rows)


def test_the_context_of_an_olympiad_question_precedes_it():
    assert read("olympiadbench", "olympiadbench.jsonl")[1][0].startswith("A circle has radius 1.\n\nWhat")


def test_rows_of_verl_may_lack_an_ability():
    assert [(answer, source, ability) for _, answer, source, ability in read("verl", "verl_tools.jsonl")] == [
        ("408", "sample_tools", ""),
        ("13", "sample_game", "game"),
    ]


def test_the_sharegpt_layout_reads_conversations_with_tools():
    found = layout("sharegpt", DataConfig())
    weather, hermes = read_rows(SAMPLES / "sharegpt_tools.jsonl")
    assert found.prompt(weather) == [
        {"role": "system", "content": "Use the tools."},
        {"role": "user", "content": "How warm is it in Oslo?"},
    ]
    assert found.conversation is not None
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert found.conversation(weather)[2:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"celsius": 4}'},
        {"role": "assistant", "content": "It is 4 degrees in Oslo."},
    ]
    assert [schema["function"]["name"] for schema in found.tools(weather)] == ["weather"]
    assert found.tools(hermes) == []
    assert [message["role"] for message in found.conversation(hermes)] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]


def test_tools_of_a_row_may_be_a_list_or_json_text():
    config = DataConfig(tools_field="tools")
    found = layout("columns", config)
    as_list, as_text = read_rows(SAMPLES / "openai_tools.jsonl")
    assert [schema["function"]["name"] for schema in found.tools(as_list)] == ["add"]
    assert found.tools(as_list) == found.tools(as_text)
    with pytest.raises(ValueError, match="row 9: 'tools' is 3, which is no list of tool schemas"):
        found.tools(DataRow({"tools": 3}, Path("a.jsonl"), 9))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"conversations": "x"}, "row 9: 'conversations' looks like chat messages, but"),
        ({"conversations": 3}, "row 9: 'conversations' is 3; it must be a list"),
        (
            {"conversations": [{"from": "human", "value": "q"}], "system": 3},
            "row 9: 'system' is 3; it must be text",
        ),
        (
            {"conversations": [{"from": "system", "value": "s"}], "system": "s"},
            "row 9: the row has a system prompt twice",
        ),
        (
            {"conversations": [{"from": "critic", "value": "q"}]},
            "row 9: message 0 of 'conversations' is from 'critic'",
        ),
    ],
)
def test_what_is_no_conversation_of_sharegpt_is_explained(fields, reason):
    with pytest.raises(ValueError, match=reason):
        layout("sharegpt", DataConfig()).prompt(DataRow(fields, Path("a.jsonl"), 9))


def test_the_eurus_layout_reads_mathematics_and_code():
    rows = read("eurus", "eurus.jsonl")
    assert [answer for _, answer, _, _ in rows[:3]] == ["7", r"\frac{3}{4}", "9"]
    assert json.loads(rows[4][1])["fn_name"] == "double"
    assert [(source, ability) for _, _, source, ability in rows] == [
        ("sample_algebra", "math"),
        ("sample_algebra", "math"),
        ("sample_counting", "math"),
        ("sample_code", "code"),
        ("sample_code", "code"),
    ]
    assert [message["role"] for message in rows[0][0]] == ["system", "user"]


def test_code_layouts_find_question_and_tests():
    (by_streams, answer, _, ability), (by_call, call, _, _) = read("livecodebench", "livecodebench.jsonl")
    assert ability == "code"
    assert by_streams.endswith("standard output.")
    assert json.loads(answer) == {"inputs": ["1\n2\n", "10\n20\n"], "outputs": ["3\n", "30\n"]}
    assert "class Solution" in by_call
    assert json.loads(call)["fn_name"] == "scale"
    rows = read("leetcode", "leetcode.jsonl")
    assert [json.loads(answer)["fn_name"] for _, answer, _, _ in rows] == ["largestGap", "flipWords"]


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("gsm8k", {"question": "q", "answer": "7"}, "no '#### '"),
        ("gsm8k", {"answer": "#### 7"}, "none of the columns question"),
        ("gsm8k", {"question": "  ", "answer": "#### 7"}, "'question' is '  '"),
        ("math", {"problem": "p", "solution": "none"}, r"no \\boxed\{answer\}"),
        ("math", {"problem": "p"}, "none of the columns solution"),
        ("olympiadbench", {"question": "q", "final_answer": None}, "proofs have none"),
        ("olympiadbench", {"question": "q", "final_answer": ["1", 2]}, r"\['1', 2\]"),
        ("olympiadbench", {"question": "q", "final_answer": "['1', '2']"}, "text that is not JSON"),
        ("olympiadbench", {"question": "q", "final_answer": '["1", 2]'}, r"\['1', 2\]"),
        ("olympiadbench", {"question": "q", "final_answer": ["nan"]}, "the text 'nan'"),
        ("olympiadbench", {"question": "q", "final_answer": {"a": "1"}}, "only problems with a list"),
        (
            "gsm8k",
            {"question": '[{"role": "user", "content": "q"}]', "answer": "#### 7"},
            "chat messages as text",
        ),
        ("gsm8k", {"question": ["q"], "answer": "#### 7"}, r"'question' is \['q'\]"),
        ("math", {"question": "q", "answer": "so\n#### 7"}, "layout = 'gsm8k' reads it"),
        ("math", {"problem": "p", "answer": "null"}, "the text 'null'"),
        (
            "eurus",
            {"prompt": "q", "data_source": None, "ability": "math", "reward_model": {"ground_truth": "1"}},
            "'data_source' is None",
        ),
        ("leetcode", {"question": "q", "test": "x"}, r"row 9: the asserts call \[\]"),
        ("leetcode", {"question": "q"}, "row 9: none of the columns test"),
        ("livecodebench", {"question_content": "q"}, "row 9: 0 tests"),
        ("eurus", {"prompt": "q", "data_source": "s", "ability": "math"}, "no field 'reward_model'"),
    ],
)
def test_the_error_names_an_invalid_row(name, fields, reason):
    row = DataRow(fields, Path("a.jsonl"), 9)
    found = layout(name, DataConfig())
    with pytest.raises(
        ValueError, match=rf"a\.jsonl, row 9: .*{reason}" if "row 9" not in reason else reason
    ):
        found.prompt(row), found.answer(row), found.source(row), found.ability(row)


@pytest.mark.parametrize(
    ("value", "answer"),
    [(["$1$", "2"], "1, 2"), ('["$1$", "2"]', "1, 2"), ("[0, 1]", "[0, 1]"), ("7", "7")],
)
def test_several_answers_may_be_json_text_and_an_interval_is_one_answer(value, answer):
    row = DataRow({"question": "q", "final_answer": value}, Path("a.csv"), 9)
    assert layout("olympiadbench", DataConfig()).answer(row) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (5, "5"),
        ("[1, 2]", "[1, 2]"),  # an interval
        ([1, 2.5], '["1", "2.5"]'),
        (["1", "one"], '["1", "one"]'),
        ([[1, 2]], "[[1, 2]]"),
        ({"inputs": [1]}, '{"inputs": [1]}'),
    ],
)
def test_lists_of_numbers_are_alternatives(value, answer):
    assert answer_text(DataRow({"answer": value}, Path("a.jsonl"), 9), "answer") == answer


@pytest.mark.parametrize(("text", "prompt"), [("2, 3", "Add.\n\n2, 3"), (" ", "Add."), (None, "Add.")])
def test_the_input_of_an_instruction_is_a_part_of_the_question(text, prompt):
    found = layout("columns", DataConfig(prompt_field="instruction"))
    row = DataRow({"instruction": "Add.", "input": text, "answer": "5"}, Path("a.json"), 9)
    assert found.prompt(row) == prompt
    with pytest.raises(ValueError, match="row 9: 'input', which belongs to 'instruction', is 5"):
        found.prompt(DataRow({"instruction": "Add.", "input": 5}, Path("a.json"), 9))
