"""The calls of tools in a turn, as Hermes and Qwen models write them.

    <tool_call>
    {"name": "calculator", "arguments": {"expression": "2 + 2"}}
    </tool_call>

A turn may have several. A malformed one becomes a message that says what is wrong, which the policy sees as the tool's.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CALL_CHARACTERS = 1 << 16
MAX_CALLS = 16
"""Calls of a turn that are executed."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAG = re.compile(f"{_OPEN}|{_CLOSE}")
_KINDS = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    type(None): "null",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A well-formed call."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A call that cannot be executed."""

    reason: str
    name: str = ""
    """Name of the tool, as far as it is known."""


def tool_calls(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[ToolCall | MalformedCall]:
    """Return the calls of a turn in order; empty if it has none.

    Thoughts are not searched: a call that the policy considers is none.

    Args:
        text: Text of the turn.
        schemas: Name of each tool -> its JSON schema of parameters.
    """
    _, closing, behind = text.rpartition("</think>")
    if not closing and "<think>" in text:
        return []
    calls: list[ToolCall | MalformedCall] = []
    for body in _bodies(behind):
        if len(calls) == MAX_CALLS:
            calls.append(
                MalformedCall(f"a turn may have at most {MAX_CALLS} calls; the others were left out")
            )
            break
        calls.append(body if isinstance(body, MalformedCall) else _call(body, schemas))
    return calls


def _bodies(text: str) -> Iterator[str | MalformedCall]:
    """Yield the text between the tags of each call."""
    start: int | None = None
    for tag in _TAG.finditer(text):
        if tag[0] == _OPEN:
            if start is not None:
                yield MalformedCall(f"a {_OPEN} begins before the one before it is closed by {_CLOSE}")
            start = tag.end()
        elif start is None:
            yield MalformedCall(f"{_CLOSE} closes no {_OPEN}")
        else:
            yield text[start : tag.start()]
            start = None
    if start is not None:
        yield MalformedCall(f"{_CLOSE} is missing behind the call")


def _call(body: str, schemas: Mapping[str, Mapping[str, Any]]) -> ToolCall | MalformedCall:
    if len(body) > MAX_CALL_CHARACTERS:
        return MalformedCall(f"the call has {len(body):,} characters, more than {MAX_CALL_CHARACTERS:,}")
    try:
        call = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return MalformedCall(f"the call is not valid JSON: {error or 'it is nested too deeply'}")
    if not isinstance(call, dict):
        return MalformedCall(f'the call is {_kind(call)}; it must be {{"name": ..., "arguments": {{...}}}}')
    name = call.get("name")
    if not isinstance(name, str):
        return MalformedCall(
            "the call has no name" if name is None else f"the name is {_kind(name)}, not a string"
        )
    if name not in schemas:
        return MalformedCall(f"there is no tool {name[:80]!r}; the tools are {', '.join(schemas)}")
    unknown = sorted(call.keys() - {"name", "arguments", "id"})
    if unknown:
        return MalformedCall(
            f"the call has the unknown field {unknown[0][:80]!r} beside name and arguments", name
        )
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return MalformedCall(f"the arguments are {_kind(arguments)}; they must be a JSON object", name)
    fault = _argument_fault(arguments, schemas[name])
    return MalformedCall(fault, name) if fault else ToolCall(name, arguments)


def _argument_fault(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return how arguments contradict a schema, or ""; of the values only the outermost type is checked."""
    properties: Mapping[str, Any] = schema.get("properties") or {}
    missing = [name for name in schema.get("required", ()) if name not in arguments]
    if missing:
        return f"the argument {missing[0]!r} is missing"
    for name, value in arguments.items():
        if name not in properties:
            known = f"the arguments are {', '.join(properties)}" if properties else "it takes none"
            return f"there is no argument {name[:80]!r}; {known}"
        of_schema = properties[name].get("type") if isinstance(properties[name], Mapping) else None
        types = [of_schema] if isinstance(of_schema, str) else of_schema or []
        if types and all(each in _TYPES for each in types) and not _has_type(value, types):
            return f"the argument {name!r} is {_kind(value)}, but must be of type {' or '.join(types)}"
    return ""


def _has_type(value: object, types: list[str]) -> bool:
    # bool is a subclass of int, and JSON writes whole numbers as 2.0 as well.
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return True
    return isinstance(value, tuple(kind for each in types for kind in _TYPES[each]))


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "an object")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
