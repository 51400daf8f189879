import json
from pathlib import Path

import pytest

from megatron_prime.data.messages import checked_prompt, conversation_of, looks_like_messages, message_text
from megatron_prime.data.rows import DataRow

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
READ_CALL = CALL | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "5", "name": "f"}


def row_of(value) -> DataRow:
    return DataRow({"m": value}, Path("a.jsonl"), 7)


PROMPTS = {
    "text": ("2+2?", "2+2?"),
    "text that begins as JSON": ("[1, 2] are {3}", "[1, 2] are {3}"),
    "text of other objects": (
        '{"from": "Paris", "to": "Rome"}: how far?',
        '{"from": "Paris", "to": "Rome"}: how far?',
    ),
    "text of objects with roles": (
        '[{"role": "nurse", "content": "x"}]: how many?',
        '[{"role": "nurse", "content": "x"}]: how many?',
    ),
    "text of objects with values": (
        '[{"from": "a", "to": "b", "value": 3}]\nFind the flow.',
        '[{"from": "a", "to": "b", "value": 3}]\nFind the flow.',
    ),
    "text of an object with a content": ('{"content": "x"}: is it JSON?', '{"content": "x"}: is it JSON?'),
    "text of values": ('[{"name": "x", "value": 3}]', '[{"name": "x", "value": 3}]'),
    "text of a set": ("{x : x > 0} has which content?", "{x : x > 0} has which content?"),
    "messages": ([SYSTEM, USER], [SYSTEM, USER]),
    "a result of a tool": (
        [USER, ASSISTANT, {"role": "tool", "content": "5"}],
        [USER, ASSISTANT, {"role": "tool", "content": "5"}],
    ),
    "JSON text": (json.dumps([USER]), [USER]),
    "JSON text on several lines": (json.dumps([SYSTEM, USER], indent=2), [SYSTEM, USER]),
    "JSON text with another key first": (json.dumps([{"id": 3, **USER}]), [USER]),
    "columns that others fill": (
        [{**USER, "tool_calls": None, "name": None, "images": [], "reasoning": ""}],
        [USER],
    ),
    "equal thoughts under two names": (
        [USER, {**ASSISTANT, "reasoning_content": "t", "reasoning": "t"}, USER],
        [USER, {**ASSISTANT, "reasoning_content": "t"}, USER],
    ),
    "thoughts of an earlier turn": (
        [USER, {**ASSISTANT, "reasoning_content": "t"}, USER],
        [USER, {**ASSISTANT, "reasoning_content": "t"}, USER],
    ),
    "a call of a tool and its result": ([USER, CALL, RESULT], [USER, READ_CALL, RESULT]),
    "a call without content": ([USER, {**CALL, "content": None}, RESULT], [USER, READ_CALL, RESULT]),
    "a call in the old format": (
        [USER, {**ASSISTANT, "function_call": {"name": "f", "arguments": ""}}, RESULT],
        [USER, READ_CALL | {"content": "4"}, RESULT],
    ),
    "calls as JSON text": (
        [USER, CALL | {"tool_calls": json.dumps(CALL["tool_calls"])}, RESULT],
        [USER, READ_CALL, RESULT],
    ),
    "from and value": ([{"from": "human", "value": "2+2?"}], [USER]),
    "text from and value": (json.dumps([{"from": "human", "value": "2+2?"}]), [USER]),
    "ShareGPT with tools": (
        [
            {"from": "human", "value": "2+2?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "5"},
        ],
        [USER, READ_CALL, {"role": "tool", "content": "5"}],
    ),
    "ShareGPT with the tags of Hermes": (
        [
            {"from": "human", "value": "2+2?"},
            {"from": "gpt", "value": "4"},
            {
                "from": "tool",
                "value": "<tool_response>\n5\n</tool_response>\n<tool_response>6</tool_response>\n",
            },
        ],
        [USER, ASSISTANT, {"role": "tool", "content": "5"}, {"role": "tool", "content": "6"}],
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_are_read(case):
    value, prompt = PROMPTS[case]
    assert checked_prompt(row_of(value), "m") == prompt


NO_PROMPTS = {
    "null": (None, "a NoneType; a prompt must be"),
    "number": (5, "a int; a prompt must be"),
    "bytes": (b"2+2?", "a bytes; a prompt must be"),
    "blank": (" \n", "is empty"),
    "a missing value as text": ("nan", "as a missing value is written"),
    "only zero-width characters": ("\u200b\ufeff", "is empty"),
    "no messages": ([], "an empty list"),
    "blank question": ([SYSTEM, {"role": "user", "content": " "}], "its last message has no text"),
    "texts": (["2+2?"], "message 0 of 'm' is '2"),
    "nested lists": ([[USER]], "message 0 of 'm' is"),
    "null content": ([{"role": "user", "content": None}], "must look like"),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "its content is a list of parts; join",
    ),
    "parts of texts": ([{"role": "user", "content": ["a", "b"]}], "its content is a list of parts; join"),
    "parts with images": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}],
            }
        ],
        "some are no text",
    ),
    "a call at the end": ([USER, {**CALL, "content": None}], "ends with a message of the assistant"),
    "no role": ([{"content": "a"}], "must look like"),
    "role null": ([{"role": None, "content": "a"}], "has the role None"),
    "role human": ([{"role": "human", "content": "a"}], "role 'human', but .*; it should be 'user'"),
    "role User": ([{"role": "User", "content": "a"}], "it should be 'user'"),
    "role ipython": ([USER, {"role": "ipython", "content": "a"}], "it should be 'tool'"),
    "text of a role of its own": ('[{"role": "critic", "content": "a"}]', "has the role 'critic'"),
    "role gpt": ([USER, {"role": "gpt", "content": "a"}], "it should be 'assistant'"),
    "role of its own": (
        [{"role": "critic", "content": "a"}],
        "has the role 'critic', but roles are system, .*tool$",
    ),
    "from a stranger": (
        [{"from": "critic", "value": "a"}],
        "message 0 of 'm' is from 'critic', but senders are",
    ),
    "a foreign call that is no JSON": (
        [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(1)"}],
        "message 1 of 'm' has 'f.1.', which is text that is not JSON",
    ),
    "an answer": ([USER, ASSISTANT], "ends with a message of the assistant"),
    "a model's answer": ([USER, {"role": "model", "content": "4"}], "it should be 'assistant'"),
    "a system message at the end": ([USER, SYSTEM], "ends with a message of the system"),
    "only a system message": ([SYSTEM], "ends with a message of the system"),
    "a call of the user": ([{**USER, "function_call": {"name": "f"}}], "has tool_calls, but is of the user"),
    "images": ([{**USER, "images": ["a.png"]}], "has images, which would be lost"),
    "thoughts that are no text": ([USER, {**ASSISTANT, "reasoning": ["a"]}, USER], "'reasoning' is a list"),
    "thoughts twice": (
        [USER, {**ASSISTANT, "reasoning": "a", "thinking": "b"}, USER],
        "message 1 of 'm' has its thoughts twice",
    ),
    "thoughts in the content too": (
        [USER, {"role": "assistant", "content": "<think>a</think>4", "reasoning_content": "a"}, USER],
        "has its thoughts twice",
    ),
    "JSON text of an answer": (json.dumps([USER, ASSISTANT]), "ends with a message of the assistant"),
    "JSON text of one message": (json.dumps(USER), "JSON text of one message"),
    "JSON text of an object": (json.dumps({"messages": [USER]}), "JSON text of a dict"),
    "JSON text of JSON text": (json.dumps(json.dumps([USER])), "JSON text of a str"),
    "JSON text that was cut": (json.dumps([USER])[:-3], "text that is not JSON"),
    "JSON text that repeats a key": ('[{"role": "user", "content": "a", "content": "b"}]', "occurs twice"),
    "deep JSON text": ('[{"role": ' + "[" * 20_000 + "]" * 20_000 + "}]", "nested too deeply"),
    "Python's text": (str([USER]), "text that is not JSON"),
    "numpy's text": (f"array([{USER}], dtype=object)", "text that is not JSON"),
}


@pytest.mark.parametrize("case", NO_PROMPTS)
def test_what_is_no_prompt_is_a_bad_row(case):
    value, reason = NO_PROMPTS[case]
    with pytest.raises(ValueError, match=rf"^a\.jsonl, row 7: .*{reason}"):
        checked_prompt(row_of(value), "m")


NO_CONVERSATIONS = {
    "no answer": ([USER], "its roles are \\['user'\\]"),
    "only an answer": ([ASSISTANT], "must hold a prompt"),
    "blank answer": ([USER, {"role": "assistant", "content": "\u200b"}], "message 1 of 'm' is .*, and empty"),
    "blank answer before others": (
        [USER, {"role": "assistant", "content": " "}, USER, ASSISTANT],
        "message 1 of 'm' is of the assistant, and empty",
    ),
    "two answers": ([USER, ASSISTANT, ASSISTANT], "answers one of the assistant, not of the user"),
    "an answer to the system": ([SYSTEM, ASSISTANT], "must hold a prompt of the user"),
    "a system message between turns": (
        [USER, ASSISTANT, SYSTEM, USER, ASSISTANT],
        "message 2 .* of the system",
    ),
    "no answer at the end": ([USER, ASSISTANT, USER], "the last of which ends it"),
    "text": ("2+2?", "text that is not JSON"),
    "number": (7, "a int; a conversation must be"),
}


@pytest.mark.parametrize("case", NO_CONVERSATIONS)
def test_what_is_no_conversation_is_a_bad_row(case):
    value, reason = NO_CONVERSATIONS[case]
    with pytest.raises(ValueError, match=rf"^a\.jsonl, row 7: .*{reason}"):
        conversation_of(row_of(value), "m")


def test_conversations_may_be_json_text():
    assert conversation_of(row_of([USER, CALL]), "m") == [USER, READ_CALL]
    for value in ([USER, ASSISTANT], json.dumps([USER, ASSISTANT])):
        assert conversation_of(row_of(value), "m") == [USER, ASSISTANT]


def test_the_text_of_a_message_has_its_thoughts():
    assert message_text({**ASSISTANT, "reasoning_content": "two and two"}) == "4\ntwo and two"
    assert message_text(READ_CALL) == '\n{"name": "f", "arguments": {}}'


def test_programs_and_formulas_are_no_messages():
    assert not any(
        map(
            looks_like_messages,
            ('{"a": 1}', "$\\{x\\}$ role: content", 'print({"content": 1})', "[[1]]", '"role": 1'),
        )
    )
