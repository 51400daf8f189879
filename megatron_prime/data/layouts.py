"""Layouts of known data sets: the columns in which they keep the problem and its answer.

A layout reads one row; its errors name the file and the row. Training data, benchmarks and `tools/convert_data.py`
share the layouts.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.data.code_tests import leetcode_tests, livecodebench_tests
from megatron_prime.data.final_answers import gsm8k_answer, last_boxed, plain_number, without_dollars
from megatron_prime.data.rows import DataRow

Message = dict[str, str]
"""A chat message, {"role": ..., "content": ...}."""

_MESSAGES_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*(?:["'](?:role|content)["']\s*:)""")
"""The begin of chat messages that were written as text, by JSON or as Python shows them."""
_QUESTIONS = ("problem", "question", "Problem", "Question")
_ANSWERS = ("answer", "Answer", "expected_answer", "final_answer")
_SOLUTIONS = ("solution", "Solution")
_CODE_PROMPTS = ("prompt_sft", "question", "problem_description", "content", "prompt")


@dataclass(frozen=True, slots=True)
class Layout:
    """Functions that read the parts of a problem from a row; each raises ValueError naming the row."""

    prompt: Callable[[DataRow], str | list[Message]]
    answer: Callable[[DataRow], str]
    """Reads the ground truth in the format of the verifier for the row's ability."""
    source: Callable[[DataRow], str]
    ability: Callable[[DataRow], str]
    is_question: bool = True
    """True if the prompt is a bare question, which becomes a user message if the tokenizer has a chat template."""


def layout(name: LayoutName, config: DataConfig) -> Layout:
    """Return the layout of that name; `config` names the columns for the layout "columns"."""
    return _columns(config) if name == "columns" else LAYOUTS[name]


def _columns(config: DataConfig) -> Layout:
    def optional(field: str | None) -> Callable[[DataRow], str]:
        return lambda row: "" if field is None else str(row.field(field))

    return Layout(
        prompt=lambda row: checked_prompt(row, config.prompt_field),
        answer=lambda row: answer_text(row, config.answer_field),
        source=optional(config.source_field),
        ability=optional(config.ability_field),
        is_question=False,
    )


def checked_prompt(row: DataRow, field: str) -> str | list[Message]:
    """Return the prompt of a row, text or chat messages. JSON text of messages, as CSV files hold them, is parsed.

    Raises:
        ValueError: If the field is missing or empty, neither text nor a list of {"role", "content"} messages, or
            already holds the answer of an assistant.
    """
    value = row.field(field)
    if isinstance(value, str) and _MESSAGES_AS_TEXT.match(value):
        value = _parsed_messages(row, field, value)
    if isinstance(value, str):
        if not value.strip():
            raise row.error(f"{field!r} is empty")
        return value
    if not isinstance(value, list):
        raise row.error(
            f"{field!r} is a {type(value).__name__}; a prompt must be text or a list of chat messages"
        )
    messages = checked_messages(row, field, value)
    if not any(message["content"].strip() for message in messages):
        raise row.error(f"{field!r} is empty")
    if messages[-1]["role"] == "assistant":
        raise row.error(
            f"{field!r} ends with a message of the assistant, so that the model would see an answer and be asked for "
            "another one: leave that message out; sft.messages_field takes whole conversations"
        )
    return messages


def _parsed_messages(row: DataRow, field: str, text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise row.error(
            f"{field!r} looks like chat messages, but is text that is not JSON ({error}): write it with json.dumps, or "
            "as a list"
        ) from error
    if not isinstance(value, list):
        raise row.error(f"{field!r} is JSON text of one message; a prompt must be text or a list of messages")
    return value


def checked_messages(row: DataRow, field: str, messages: Sequence[Any]) -> list[Message]:
    """Return chat messages reduced to role and content. Raises ValueError for an invalid message."""
    if not messages:
        raise row.error(f"{field!r} is an empty list of messages")
    checked = []
    for position, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("content"), str)
            or "role" not in message
        ):
            raise row.error(
                f"message {position} of {field!r} is {message!r}; a message must look like "
                '{"role": "user", "content": "text"}'
            )
        checked.append({"role": str(message["role"]), "content": message["content"]})
    return checked


def answer_text(row: DataRow, field: str) -> str:
    """Return the ground truth as text: numbers by str, objects and lists (unit tests of code) as JSON.

    Raises:
        ValueError: If the field is missing, null, blank, not finite, or of another type.
    """
    return _answer(row, field, row.field(field))


def _answer(row: DataRow, field: str, value: object) -> str:
    if value is None:
        raise row.error(f"{field!r} is null: the verifier needs a ground truth")
    if isinstance(value, str):
        if not value.strip():
            raise row.error(f"{field!r} is empty: the verifier needs a ground truth")
        return value
    if isinstance(value, dict | list):
        if not value:
            raise row.error(f"{field!r} is {value!r}: the verifier needs a ground truth")
        return json.dumps(value)
    if isinstance(value, int | float | Decimal):
        if not math.isfinite(value):
            # pandas writes a missing value so.
            raise row.error(f"{field!r} is {value}: the verifier needs a ground truth, which this is not")
        return str(value)
    raise row.error(f"{field!r} is of the type {type(value).__name__}; an answer must be text or a number")


def _text(row: DataRow, names: Sequence[str]) -> str:
    """Return the text of the first of the columns that the row has."""
    for name in names:
        value = row.fields.get(name)
        if value is not None:
            if not isinstance(value, str) or not value.strip():
                raise row.error(f"{name!r} is {value!r}; it must be text that is not empty")
            return value
    raise row.error(f"none of the columns {', '.join(names)} is present; the row has {sorted(row.fields)}")


def _always(name: str) -> Callable[[DataRow], str]:
    return lambda row: name


def _source(default: str) -> Callable[[DataRow], str]:
    # A mixed file may name the source per row; the name of the layout is the default.
    return lambda row: str(row.fields.get("data_source") or default)


def _gsm8k_answer(row: DataRow) -> str:
    answer = gsm8k_answer(_text(row, ("answer",)))
    if answer is None:
        raise row.error("'answer' has no '#### ' followed by a number")
    return answer


def _math_answer(row: DataRow) -> str:
    """Return the answer column if there is one, otherwise the last box of the worked solution."""
    # A separate answer column takes precedence: a solution may box intermediate results as well.
    for name in _ANSWERS:
        value = row.fields.get(name)
        is_missing = value is None or (isinstance(value, float) and math.isnan(value))
        if not is_missing and str(value).strip():
            return plain_number(without_dollars(_answer(row, name, value)))
    solution = _text(row, _SOLUTIONS)
    answer = last_boxed(solution)
    if answer is None:
        raise row.error(
            f"none of the columns {', '.join(_ANSWERS)} is present, and the solution has no \\boxed{{answer}}"
        )
    return answer


def _olympiad_question(row: DataRow) -> str:
    context = row.fields.get("context")
    question = _text(row, ("question",))
    # The context is part of the problem, but in a column of its own.
    return f"{context}\n\n{question}" if isinstance(context, str) and context.strip() else question


def _olympiad_answer(row: DataRow) -> str:
    """Return all final answers, separated by commas: a problem with several requires all of them."""
    answers = row.fields.get("final_answer")
    if isinstance(answers, str):
        answers = [answers]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise row.error(
            f"'final_answer' is {answers!r}; only problems with a list of answers can be verified (proofs have none)"
        )
    return ", ".join(without_dollars(answer) for answer in answers)


def _leetcode_answer(row: DataRow) -> str:
    entry_point = row.fields.get("entry_point")
    try:
        return leetcode_tests(_text(row, ("test",)), None if entry_point is None else str(entry_point))
    except ValueError as error:
        # _text already names the row; leetcode_tests knows no rows.
        raise error if str(row.path) in str(error) else row.error(str(error)) from error


def _starter_code(row: DataRow) -> str | None:
    """Return the code to complete as an ending for the question, or None if there is none."""
    starter = row.fields.get("starter_code")
    if not isinstance(starter, str) or not starter.strip():
        return None
    return f"\n\nComplete this code:\n```python\n{starter}\n```"


def _leetcode_question(row: DataRow) -> str:
    return _text(row, _CODE_PROMPTS) + (_starter_code(row) or "")


def _livecodebench_question(row: DataRow) -> str:
    by_stdin = "\n\nThe program reads from standard input and writes to standard output."
    return _text(row, ("question_content",)) + (_starter_code(row) or by_stdin)


def _livecodebench_answer(row: DataRow) -> str:
    fields = row.fields
    try:
        return livecodebench_tests(
            fields.get("public_test_cases"), fields.get("private_test_cases"), fields.get("metadata")
        )
    except ValueError as error:
        raise row.error(str(error)) from error


LAYOUTS: dict[str, Layout] = {
    "eurus": Layout(
        prompt=lambda row: checked_prompt(row, "prompt"),
        answer=lambda row: answer_text(row, "reward_model.ground_truth"),
        source=lambda row: str(row.field("data_source")),
        ability=lambda row: str(row.field("ability")),
        is_question=False,
    ),
    "gsm8k": Layout(lambda row: _text(row, ("question",)), _gsm8k_answer, _source("gsm8k"), _always("math")),
    "math": Layout(lambda row: _text(row, _QUESTIONS), _math_answer, _source("math"), _always("math")),
    "olympiadbench": Layout(_olympiad_question, _olympiad_answer, _source("olympiadbench"), _always("math")),
    "leetcode": Layout(_leetcode_question, _leetcode_answer, _source("leetcode"), _always("code")),
    "livecodebench": Layout(
        _livecodebench_question, _livecodebench_answer, _source("livecodebench"), _always("code")
    ),
}
"""The layouts of `data.layout` by name, except "columns", whose columns the configuration names."""
