"""Calls and schemas of tools are read in the forms that data sets have them."""

import json

import pytest

from megatron_prime.data.conversations.tool_calls import schemas_of, tool_calls_of

FUNCTION = {"name": "add", "arguments": {"x": 1, "y": [2]}}
CALL = {"type": "function", "function": FUNCTION}
SCHEMA = {"name": "add", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}

CALLS = {
    "OpenAI": [{**CALL, "id": "c1"}],
    "arguments as text": [
        {"function": {**FUNCTION, "arguments": json.dumps(FUNCTION["arguments"])}, "id": "c1"}
    ],
    "bare": [{**FUNCTION, "id": "c1"}],
    "one call alone": {**CALL, "id": "c1"},
    "text of a list": json.dumps([{**FUNCTION, "id": "c1"}]),
    "a list of texts": [json.dumps({**FUNCTION, "id": "c1"})],
    "parameters": [{"name": "add", "parameters": FUNCTION["arguments"], "id": "c1"}],
}
NO_CALLS = {
    "a text": ("add(1, 2)", "text that is not JSON"),
    "no name": ([{"arguments": {}}], "must look like"),
    "an empty name": ([{"function": {"name": "", "arguments": {}}}], "must look like"),
    "arguments that are no JSON": ([{"name": "f", "arguments": "x=1"}], "call of f whose arguments are text"),
    "arguments that are a list": ([{"name": "f", "arguments": [1]}], "which is no object"),
    "a number": ([3], "must look like"),
}


@pytest.mark.parametrize("case", CALLS)
def test_all_forms_of_a_call_become_one(case):
    assert tool_calls_of(CALLS[case]) == [{**CALL, "id": "c1"}]


def test_a_call_without_arguments_has_none():
    assert tool_calls_of({"name": "now"}) == [
        {"type": "function", "function": {"name": "now", "arguments": {}}}
    ]


@pytest.mark.parametrize("case", NO_CALLS)
def test_what_is_no_call_is_explained(case):
    value, reason = NO_CALLS[case]
    with pytest.raises(ValueError, match=reason):
        tool_calls_of(value)


@pytest.mark.parametrize(
    "value",
    [[SCHEMA], [{"type": "function", "function": SCHEMA}], json.dumps([SCHEMA]), [json.dumps(SCHEMA)]],
)
def test_all_forms_of_a_schema_become_one(value):
    assert schemas_of(value) == [{"type": "function", "function": SCHEMA}]


@pytest.mark.parametrize("value", [None, "", " ", [], "[]"])
def test_a_row_may_have_no_tools(value):
    assert schemas_of(value) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("add", "not JSON"),
        ({"name": "add"}, "no list of tool schemas"),
        ([{"parameters": {}}], "a tool must look like"),
    ],
)
def test_what_are_no_schemas_is_explained(value, reason):
    with pytest.raises(ValueError, match=reason):
        schemas_of(value)
