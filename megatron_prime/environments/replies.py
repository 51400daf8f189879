"""Checks what a user's environment returns, and makes messages for the pool of it."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prime.environments.protocol import Step
from megatron_prime.workers.errors import plain

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_CHARACTERS = 1 << 20
"""Most characters of all messages of a reply, as JSON: more than any context holds."""

MAX_REASON = 500
"""Characters of a reason that are kept."""


class InvalidReplyError(ValueError):
    """An environment returned what is no reply; the message says what, and names the method, file and line."""


def prompt_of(messages: object, place: str) -> list[dict[str, Any]]:
    """Return the messages of a prompt. Raises InvalidReplyError if `reset`, which is at `place`, returned others."""
    checked = _checked_messages(messages, place, ROLES)
    if not checked or checked[-1]["role"] not in ("user", "tool"):
        ends = f"end with one of the {checked[-1]['role']}" if checked else "are empty"
        raise InvalidReplyError(
            f"the messages of {place} {ends}, but the policy answers one of the user or a tool"
        )
    return checked


def reply_of(step: object, place: str) -> dict[str, Any]:
    """Return a step as JSON values. Raises InvalidReplyError if `step`, which is at `place`, returned none."""
    if not isinstance(step, Step):
        raise InvalidReplyError(
            f"{place} returned a value of type {type(step).__name__}: it must return Step.reply(...) or Step.done(...)"
        )
    outcome = None if step.outcome is None else _number(step.outcome, "outcome", 0.0, place)
    reward = _number(step.reward, "reward", -1.0, place)
    messages = [] if step.is_done else _checked_messages(step.messages, place, ("user", "tool", "system"))
    if not step.is_done and not messages:
        raise InvalidReplyError(f"{place} replied without messages: end the episode by Step.done(...)")
    if not step.is_done and outcome is not None:
        raise InvalidReplyError(f"{place} gave an outcome, but did not end the episode: use Step.done(...)")
    return {
        "messages": messages,
        "is_done": bool(step.is_done),
        "reward": reward,
        "outcome": outcome,
        "reason": plain(str(step.reason)[:MAX_REASON]),
    }


def _number(value: object, name: str, lowest: float, place: str) -> float:
    number = math.nan
    # Numbers of numpy and torch have the method, and arrays as well; float() alone would take text.
    if hasattr(type(value), "__float__"):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            number = float(value)  # type: ignore[arg-type]
    if not lowest <= number <= 1.0:  # also rejects NaN
        raise InvalidReplyError(f"{place}: the {name} {value!r:.40} is no number in [{lowest:g}, 1]")
    return number + 0.0


def _checked_messages(messages: object, place: str, roles: Sequence[str]) -> list[dict[str, Any]]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidReplyError(
            f"{place} returned a value of type {type(messages).__name__}: messages are a list of "
            '{"role": "user", "content": "text"}'
        )
    checked = []
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise InvalidReplyError(
                f"{place}: message {position} is {message!r:.80}; it must look like "
                '{"role": "user", "content": "text"}'
            )
        role = message.get("role")
        if role not in roles:
            raise InvalidReplyError(
                f"{place}: message {position} has the role {role!r:.40}, but roles here are {', '.join(roles)}"
            )
        checked.append(dict(message))
    num_characters = sum(len(message["content"]) for message in checked)
    try:
        # Halves of characters and numbers that JSON does not have would fail in the tokenizer or the pipe.
        if num_characters <= MAX_CHARACTERS:
            num_characters = len(json.dumps(checked, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidReplyError(f"{place}: its messages are no JSON values: {error}") from error
    if num_characters > MAX_CHARACTERS:
        raise InvalidReplyError(
            f"{place}: its messages have {num_characters:,} characters, more than {MAX_CHARACTERS:,}"
        )
    return checked
