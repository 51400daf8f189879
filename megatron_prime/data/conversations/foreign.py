"""Messages in the format of ShareGPT, {"from": ..., "value": ...}, made messages with roles."""

import re
from collections.abc import Mapping
from typing import Any

ROLE_OF = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""The role of each sender. The value of function_call is a call of a tool, or a list of calls, as JSON text."""
_TOOL_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)


def is_foreign(message: object) -> bool:
    """Return whether a message is in the format of ShareGPT."""
    return isinstance(message, Mapping) and "from" in message and "value" in message and "role" not in message


def with_roles(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of one of ShareGPT's, with the other fields as they are.

    Results of tools in the tags <tool_response>, as data for Hermes has them, become one message each and lose the
    tags, which chat templates write.

    Raises:
        ValueError: the sender is not known; the message continues "message 3".
    """
    sender = message["from"]
    role = ROLE_OF.get(str(sender).casefold())
    if role is None:
        raise ValueError(f"is from {sender!r}, but senders are {', '.join(ROLE_OF)}")
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    value = message["value"]
    if str(sender).casefold() == "function_call":
        return [{"role": role, "content": "", "tool_calls": value, **rest}]
    if role == "tool" and isinstance(value, str) and not _TOOL_RESPONSE.sub("", value).strip():
        results = _TOOL_RESPONSE.findall(value)
        if results:
            return [{"role": role, "content": result, **rest} for result in results]
    return [{"role": role, "content": value, **rest}]
