"""Chat messages of a row: prompts and conversations, as lists or as JSON text, checked so that no part is lost."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.conversations.foreign import is_foreign, with_roles
from megatron_prime.data.conversations.tool_calls import tool_calls_of
from megatron_prime.data.rows import DataRow
from megatron_prime.data.rows.json_text import parse_json, shown
from megatron_prime.data.rows.row import is_blank, is_missing_text

Message = dict[str, Any]
"""A chat message, {"role": ..., "content": ...}, with the thoughts of an assistant under a name of `THOUGHTS`, its
`tool_calls` (conversations/tool_calls.py), and the `name` and `tool_call_id` of a tool's result; all other values are
text."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages. A chat template leaves out messages of roles that it does not know, without an error."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message with the thoughts before its content, as chat templates and servers name them."""
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "ipython": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Other names of roles, for the advice of an error."""
_NOT_TAKEN = ("images", "image", "videos", "video", "audios", "audio")
"""Fields of a message that carry what the model should see, but that are not supported."""
_ANY_ROLE = "|".join((*ROLES, *_OTHER_NAMES))
_BEGIN = r"""[\s"'\\]*(?:(?:np\.)?array\()?[\s\[(]*\{"""
_MESSAGES_AS_TEXT = re.compile(
    rf"""{_BEGIN}(?=.*?["'](?:role|from)\\*["']\s*:\s*\\*["'](?:{_ANY_ROLE})\\*["'])"""
    r"""(?=.*?["'](?:content|value)\\*["']\s*:)""",
    re.DOTALL,
)
"""Chat messages that were written as text, by JSON or as Python shows them. Other objects may have a role, a content
or a value as well; the name of a role tells them apart."""
_FIRST_KEY = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|content)["']\s*:""")
_LIST_OF_ROLES = re.compile(r"""\s*\[\s*\{\s*["']role["']\s*:""")
_THOUGHT_TAG = re.compile(r"</?(?:think|thinking|thought|reasoning)>")


def complete_messages(prompt: str | Sequence[Message], config: DataConfig) -> list[Message]:
    """Return the messages of a prompt with the system prompt and the instruction of the configuration."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if config.instruction:
        last = messages[-1]
        messages[-1] = last | {"content": f"{last['content']}\n\n{config.instruction}"}
    # A system message of the data takes precedence.
    if config.system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    return messages


def checked_prompt(row: DataRow, field: str) -> str | list[Message]:
    """Return the prompt of a row, text or chat messages. JSON text of messages, as CSV files hold them, is parsed.

    Raises:
        ValueError: If the field is missing or empty, neither text nor a list of {"role", "content"} messages, or
            already holds the answer of an assistant.
    """
    value = row.field(field)
    if isinstance(value, str) and looks_like_messages(value):
        value = parsed_messages(row, field, value)
    if isinstance(value, str):
        if is_blank(value):
            raise row.error(f"{field!r} is empty")
        if is_missing_text(value):
            raise row.error(f"{field!r} is the text {value!r}, as a missing value is written")
        return value
    if not isinstance(value, list):
        raise row.error(
            f"{field!r} is a {type(value).__name__}; a prompt must be text or a list of chat messages"
        )
    messages = checked_messages(row, field, value)
    last = messages[-1]
    if last["role"] == "assistant":
        raise row.error(
            f"{field!r} ends with a message of the assistant, so that the model would see an answer and be asked for "
            "another one: leave that message out; sft.messages_field takes whole conversations"
        )
    if is_blank(last["content"]):
        raise row.error(f"{field!r} is empty: its last message has no text")
    if last["role"] not in ("user", "tool"):
        raise row.error(
            f"{field!r} ends with a message of the {last['role']}, to which nothing is to be answered"
        )
    return messages


def conversation_of(row: DataRow, field: str) -> list[Message]:
    """Return the chat messages of a row, a list or its JSON text: a prompt, and turns of the assistant up to the end.

    Raises:
        ValueError: If the field holds anything else.
    """
    value = row.field(field)
    if isinstance(value, str):
        value = parsed_messages(row, field, value)
    if not isinstance(value, list):
        raise row.error(
            f"{field!r} is a {type(value).__name__}; a conversation must be a list of chat messages"
        )
    return checked_conversation(row, field, checked_messages(row, field, value))


def checked_conversation(row: DataRow, field: str, messages: list[Message]) -> list[Message]:
    """Return messages that are a prompt, and turns of the assistant up to the end. Raises ValueError for others."""
    roles = [message["role"] for message in messages]
    first = first_answer(messages)
    if first is None or roles[-1] != "assistant":
        raise row.error(
            f"{field!r} must hold a prompt of the user, followed by turns of the assistant, the last of which ends it; "
            f"its roles are {roles}"
        )
    for position in range(first, len(messages)):
        message = messages[position]
        if message["role"] == "system":
            raise row.error(
                f"message {position} of {field!r} is of the system, in the middle of the conversation"
            )
        if message["role"] != "assistant":
            continue
        if is_blank(message["content"]) and not message.get("tool_calls"):
            raise row.error(f"message {position} of {field!r} is of the assistant, and empty")
        if roles[position - 1] not in ("user", "tool"):
            raise row.error(
                f"message {position} of {field!r} answers one of the {roles[position - 1]}, not of the user or a tool"
            )
    return messages


def first_answer(messages: Sequence[Message]) -> int | None:
    """Return the position of the first message of the assistant behind one of the user; None if there is none."""
    is_asked = False
    for position, message in enumerate(messages):
        if is_asked and message["role"] == "assistant":
            return position
        is_asked |= message["role"] == "user"
    return None


def checked_messages(row: DataRow, field: str, messages: Sequence[Any]) -> list[Message]:
    """Return chat messages reduced to what `Message` names; those of ShareGPT get roles.

    Raises:
        ValueError: a message is invalid.
    """
    if not messages:
        raise row.error(f"{field!r} is an empty list of messages")
    checked: list[Message] = []
    for position, value in enumerate(messages):
        name = f"message {position} of {field!r}"
        try:
            parts = with_roles(value) if is_foreign(value) else [value]
        except ValueError as error:
            raise row.error(f"{name} {error}") from error
        checked += [_checked_message(row, name, part) for part in parts]
    return checked


def looks_like_messages(text: str) -> bool:
    """Return whether a text seems to be chat messages that were written as text."""
    if _MESSAGES_AS_TEXT.match(text) is not None:
        return True
    # Nothing but a list of objects with roles, whatever their names are.
    return _LIST_OF_ROLES.match(text) is not None and text.rstrip().endswith("]")


def is_conversation(value: object) -> bool:
    """Return whether a value seems to be a list of chat messages that ends with the assistant's."""
    last = value[-1] if isinstance(value, list) and len(value) > 1 else None
    return isinstance(last, dict) and (last.get("role") == "assistant" or is_foreign(last))


def begins_as_messages(text: str) -> bool:
    """Return whether a text begins as JSON text of chat messages does; tests of code hold other objects."""
    return _FIRST_KEY.match(text) is not None and looks_like_messages(text)


def message_text(message: Message) -> str:
    """Return the text of a message, with its thoughts and its calls of tools."""
    texts = [value for name, value in message.items() if name not in ("role", "tool_calls")]
    return "\n".join([*texts, *(json.dumps(call["function"]) for call in message.get("tool_calls", ()))])


def _checked_message(row: DataRow, name: str, value: object) -> Message:
    if isinstance(value, dict) and value.get("content") is None and _calls(value):
        value = value | {"content": ""}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or "role" not in value:
        raise row.error(
            f'{name} is {shown(value)}; a message must look like {{"role": "user", "content": "text"}}'
            + _message_advice(value)
        )
    role = value["role"]
    if role not in ROLES:
        meant = _OTHER_NAMES.get(str(role).casefold(), str(role).casefold())
        hint = f"; it should be {meant!r}" if meant in ROLES else ""
        raise row.error(f"{name} has the role {shown(role)}, but roles are {', '.join(ROLES)}{hint}")
    message: Message = {"role": role, "content": value["content"]}
    if len(value) == 2:  # the common case
        return message
    lost = [key for key in _NOT_TAKEN if value.get(key)]
    if lost:
        raise row.error(f"{name} has {', '.join(lost)}, which would be lost: only text is supported")
    for key in THOUGHTS:
        thoughts = value.get(key)
        if thoughts is not None and not isinstance(thoughts, str):
            raise row.error(f"{name}: {key!r} is a {type(thoughts).__name__}; thoughts must be text")
        if thoughts and not is_blank(thoughts) and thoughts not in message.values():
            message[key] = thoughts
    if len(message) > 3 or (len(message) > 2 and _THOUGHT_TAG.search(message["content"])):
        raise row.error(
            f"{name} has its thoughts twice: leave them in one of {', '.join(('content', *THOUGHTS))}"
        )
    return message | _tool_fields(row, name, value)


def _calls(value: Mapping[str, Any]) -> object:
    """Return the calls of tools of a message as the data has them; something false if there are none."""
    return value.get("tool_calls") or value.get("function_call")


def _tool_fields(row: DataRow, name: str, value: Mapping[str, Any]) -> Message:
    """Return the fields of a message that concern tools: the calls of an assistant, or what a result belongs to."""
    fields: Message = {}
    calls = _calls(value)
    if calls:
        if value["role"] != "assistant":
            raise row.error(
                f"{name} has tool_calls, but is of the {value['role']}: the assistant calls tools"
            )
        try:
            fields["tool_calls"] = tool_calls_of(calls)
        except ValueError as error:
            raise row.error(f"{name} has {error}") from error
    if value["role"] == "tool":
        fields |= {key: value[key] for key in ("name", "tool_call_id") if isinstance(value.get(key), str)}
    return fields


def _message_advice(value: object) -> str:
    """Return how to make a message of a value that is none, as the end of a sentence; empty if that is plain."""
    if not isinstance(value, dict):
        return ""
    lost = [key for key in _NOT_TAKEN if value.get(key)]
    if lost:
        return f": {', '.join(lost)} would be lost, because only text is supported"
    content = value.get("content")
    if not isinstance(content, list):
        return ""
    if all(
        isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))
        for part in content
    ):
        return ": its content is a list of parts; join their texts into one"
    return ": its content is a list of parts, and some are no text, which is not supported"


def parsed_messages(row: DataRow, field: str, text: str) -> list[Any]:
    """Return the list of messages that a JSON text holds, unchecked. Raises ValueError for other text."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise row.error(
            f"{field!r} looks like chat messages, but is text that is not JSON ({error}): write it with json.dumps, or "
            "as a list"
        ) from error
    if isinstance(value, list):
        return value
    kind = "one message" if isinstance(value, dict) and "content" in value else f"a {type(value).__name__}"
    raise row.error(f"{field!r} is JSON text of {kind}; a prompt must be text or a list of messages")
