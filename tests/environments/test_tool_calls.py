import json

import pytest

from megatron_prime.environments.tool_calls import MAX_CALLS, MalformedCall, ToolCall, tool_calls

SCHEMAS = {
    "add": {
        "properties": {
            "x": {"type": "integer"},
            "y": {"type": "number"},
            "note": {"type": ["string", "null"]},
        },
        "required": ["x"],
    },
    "look": {},
    "any": {"properties": {"x": {}, "y": {"anyOf": [{"type": "string"}]}, "z": {"type": "unknown"}}},
}


def parse(text):
    return tool_calls(text, SCHEMAS)


def called(body):
    return f"<tool_call>\n{body}\n</tool_call>"


ADD = '{"name": "add", "arguments": {"x": 1}}'
GOOD = {
    "plain": (called(ADD), [("add", {"x": 1})]),
    "one line": (f"<tool_call>{ADD}</tool_call>", [("add", {"x": 1})]),
    "between texts": (f"I add.\n{called(ADD)}\nDone.", [("add", {"x": 1})]),
    "two": (called(ADD) + "\n" + called('{"name": "look", "arguments": {}}'), [("add", {"x": 1}), ("look", {})]),
    "whole float": (called('{"name": "add", "arguments": {"x": 1.0, "y": 2}}'), [("add", {"x": 1.0, "y": 2})]),
    "null": (called('{"name": "add", "arguments": {"x": 1, "note": null}}'), [("add", {"x": 1, "note": None})]),
    "no arguments": (called('{"name": "look"}'), [("look", {})]),
    "unicode": (called('{"name": "any", "arguments": {"y": "\\u00e9 \\ud83d\\ude00 π"}}'), [("any", {"y": "é 😀 π"})]),
    "a tag in a text": (
        called('{"name": "any", "arguments": {"x": "<tool\\u005fcall>"}}'),
        [("any", {"x": "<tool_call>"})],
    ),
    "without a type": (called('{"name": "any", "arguments": {"x": [1], "z": {}}}'), [("any", {"x": [1], "z": {}})]),
    "with an id": (called('{"id": "a", "name": "look", "arguments": {}}'), [("look", {})]),
    "behind thoughts": (f"<think>{called('{')}</think>\n{called(ADD)}", [("add", {"x": 1})]),
    "thoughts that the prompt opened": (f"{called('{')}</think>{called(ADD)}", [("add", {"x": 1})]),
    "none": ("The answer is 3.", []),
    "thoughts alone": (f"<think>{called(ADD)}", []),
    "empty": ("", []),
}  # fmt: skip


@pytest.mark.parametrize(("text", "calls"), GOOD.values(), ids=GOOD)
def test_calls_are_found_in_order(text, calls):
    assert parse(text) == [ToolCall(*call) for call in calls]


BAD = {
    "no name": ('{"arguments": {"x": 1}}', "the call has no name"),
    "name of a number": ('{"name": 3, "arguments": {}}', "the name is a number, not a string"),
    "unknown tool": ('{"name": "sub", "arguments": {}}', "there is no tool 'sub'; the tools are add, look, any"),
    "arguments as text": (
        '{"name": "add", "arguments": "{\\"x\\": 1}"}',
        "the arguments are a string; they must be a JSON object",
    ),
    "arguments as list": ('{"name": "add", "arguments": [1]}', "the arguments are a list"),
    "other field": (
        '{"name": "add", "parameters": {"x": 1}}',
        "the unknown field 'parameters' beside name and arguments",
    ),
    "missing": ('{"name": "add", "arguments": {"y": 1}}', "the argument 'x' is missing"),
    "unknown argument": (
        '{"name": "add", "arguments": {"x": 1, "z": 2}}',
        "there is no argument 'z'; the arguments are x, y, note",
    ),
    "takes none": ('{"name": "look", "arguments": {"x": 1}}', "there is no argument 'x'; it takes none"),
    "text for a number": (
        '{"name": "add", "arguments": {"x": "1"}}',
        "the argument 'x' is a string, but must be of type integer",
    ),
    "fraction": ('{"name": "add", "arguments": {"x": 1.5}}', "'x' is a number, but must be of type integer"),
    "boolean": ('{"name": "add", "arguments": {"x": true}}', "'x' is a boolean, but must be of type integer"),
    "two types": ('{"name": "add", "arguments": {"x": 1, "note": 2}}', "must be of type string or null"),
    "no JSON": ('add(1, 2)', "the call is not valid JSON: Expecting value"),
    "single quotes": ("{'name': 'add'}", "the call is not valid JSON"),
    "two objects": (ADD + ADD, "the call is not valid JSON: Extra data"),
    "nothing": ("", "the call is not valid JSON"),
    "NaN": ('{"name": "any", "arguments": {"x": NaN}}', "NaN is no number of JSON"),
    "list": ("[]", "the call is a list; it must be"),
    "deep": ("[" * 60_000, "not valid JSON"),
    "1 MB": (json.dumps({"name": "any", "arguments": {"x": "x" * 10**6}}), "the call has 1,000,0"),
    "a million digits": ('{"name": "any", "arguments": {"x": ' + "9" * 60_000 + "}}", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BAD.values(), ids=BAD)
def test_a_malformed_call_says_what_is_wrong(body, reason):
    first, second = parse(called(body) + called(ADD))
    assert isinstance(first, MalformedCall) and reason in first.reason and len(first.reason) < 300
    assert second == ToolCall("add", {"x": 1}), "the next call is not affected"


TAGS = {
    "unclosed": (f"<tool_call>{ADD}", ["</tool_call> is missing"]),
    "nested": (
        f"<tool_call><tool_call>{ADD}</tool_call>",
        ["begins before the one before it is closed", None],
    ),
    "not opened": (f"{ADD}</tool_call>", ["closes no <tool_call>"]),
    "closed twice": (f"{called(ADD)}</tool_call>", [None, "closes no <tool_call>"]),
}


@pytest.mark.parametrize(("text", "reasons"), TAGS.values(), ids=TAGS)
def test_tags_that_do_not_match(text, reasons):
    for call, reason in zip(parse(text), reasons, strict=True):
        if reason is None:
            assert call == ToolCall("add", {"x": 1})
        else:
            assert isinstance(call, MalformedCall) and reason in call.reason


def test_a_turn_of_a_thousand_calls_is_cut():
    calls = parse(called(ADD) * 1000)
    assert len(calls) == MAX_CALLS + 1
    assert isinstance(calls[-1], MalformedCall) and "at most 16 calls" in calls[-1].reason
