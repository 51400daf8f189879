"""Calls and schemas of tools in the forms that data sets have them, made the form that chat templates take."""

from collections.abc import Mapping
from typing import Any

from megatron_prime.data.rows.json_text import parse_json, shown

ToolCall = dict[str, Any]
"""{"type": "function", "function": {"name": ..., "arguments": {...}}}, with the call's id if the data has one."""
Schema = dict[str, Any]
"""{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}."""


def tool_calls_of(value: object) -> list[ToolCall]:
    """Return the calls of a message: a call or a list of calls, or their JSON text.

    A call is {"name", "arguments"}, alone or as `function` of an object, as OpenAI has it. Arguments may be JSON text:
    chat templates would write that as a string within JSON, and the policy would learn to.

    Raises:
        ValueError: the value is anything else; the message continues "message 3 has".
    """
    value = _parsed(value)
    calls = value if isinstance(value, list) else [value]
    return [_call(_parsed(call)) for call in calls]


def _call(value: object) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if (
        not isinstance(value, Mapping)
        or not isinstance(function, Mapping)
        or not isinstance(name, str)
        or not name
    ):
        raise ValueError(
            f'{shown(value)} as a call, which must look like {{"name": "f", "arguments": {{"x": 1}}}}'
        )
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except ValueError as error:
            raise ValueError(
                f"a call of {name} whose arguments are text that is not JSON ({error})"
            ) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"a call of {name} whose arguments are {shown(arguments)}, which is no object")
    call: ToolCall = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    if isinstance(value.get("id"), str):
        call["id"] = value["id"]
    return call


def schemas_of(value: object) -> list[Schema]:
    """Return the tools of a row: a list of schemas or its JSON text; null and empty text are no tools.

    A schema is {"name", "description", "parameters"}, alone or as `function` of an object, as OpenAI has it.

    Raises:
        ValueError: the value is anything else; the message continues "the column is".
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    parsed = _parsed(value)
    if not isinstance(parsed, list):
        raise ValueError(f"{shown(parsed)}, which is no list of tool schemas")
    return [_schema(_parsed(schema)) for schema in parsed]


def _schema(value: object) -> Schema:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(
            f'a list with {shown(value)}, but a tool must look like {{"name": "f", "parameters": {{}}}}'
        )
    return {"type": "function", "function": dict(function)}


def _parsed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise ValueError(f"{shown(value)}, which is text that is not JSON ({error})") from error
