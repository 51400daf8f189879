"""How the files of known data sets say what the problem and its answer are.

A layout reads one row; what it cannot find it says with file and row. Training data, benchmarks and
`tools/convert_data.py` share them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.data.code_tests import leetcode_tests, livecodebench_tests
from megatron_prime.data.final_answers import gsm8k_answer, last_boxed, plain_number, without_dollars
from megatron_prime.data.rows import Row

Message = dict[str, str]
"""{"role": ..., "content": ...}."""

_QUESTIONS = ("problem", "question", "Problem", "Question")
_ANSWERS = ("answer", "Answer", "expected_answer", "final_answer")
_SOLUTIONS = ("solution", "Solution")
_CODE_PROMPTS = ("prompt_sft", "question", "problem_description", "content", "prompt")


@dataclass(frozen=True, slots=True)
class Layout:
    """Reads the parts of a problem from a row; each function raises ValueError naming the row."""

    prompt: Callable[[Row], str | list[Message]]
    answer: Callable[[Row], str]
    """Ground truth as the verifier of the ability takes it."""
    source: Callable[[Row], str]
    ability: Callable[[Row], str]
    is_question: bool = True
    """The prompt is a bare question: a tokenizer with a chat template shows it as a user's message."""


def layout(name: LayoutName, config: DataConfig) -> Layout:
    """The layout of that name; `config` names the columns of "columns"."""
    return _columns(config) if name == "columns" else LAYOUTS[name]


def _columns(config: DataConfig) -> Layout:
    def optional(field: str | None) -> Callable[[Row], str]:
        return lambda row: "" if field is None else str(row.field(field))

    return Layout(
        prompt=lambda row: checked_prompt(row, config.prompt_field),
        answer=lambda row: answer_text(row, config.answer_field),
        source=optional(config.source_field),
        ability=optional(config.ability_field),
        is_question=False,
    )


def checked_prompt(row: Row, field: str) -> str | list[Message]:
    """A prompt that is text or chat messages.

    Raises:
        ValueError: the field is missing, empty, or neither text nor a list of {"role", "content"} messages.
    """
    value = row.field(field)
    if isinstance(value, str):
        if not value.strip():
            raise row.error(f"{field!r} is empty")
        return value
    if not isinstance(value, list):
        raise row.error(f"{field!r} is a {type(value).__name__}; a prompt is text or a list of chat messages")
    messages = checked_messages(row, field, value)
    if not any(message["content"].strip() for message in messages):
        raise row.error(f"{field!r} is empty")
    return messages


def checked_messages(row: Row, field: str, messages: Sequence[Any]) -> list[Message]:
    """Chat messages with their role and content alone. Raises ValueError for what is none."""
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
                f"message {position} of {field!r} is {message!r}; a message is "
                '{"role": "user", "content": "text"}'
            )
        checked.append({"role": str(message["role"]), "content": message["content"]})
    return checked


def answer_text(row: Row, field: str) -> str:
    """The ground truth as text: numbers by str, objects and lists (unit tests of code) as JSON."""
    value = row.field(field)
    if value is None:
        raise row.error(f"{field!r} is null: the verifier needs a ground truth")
    if isinstance(value, str):
        if not value.strip():
            raise row.error(f"{field!r} is empty: the verifier needs a ground truth")
        return value
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def _text(row: Row, names: Sequence[str]) -> str:
    """The first of the columns that is there, which must hold text."""
    for name in names:
        value = row.fields.get(name)
        if value is not None:
            if not isinstance(value, str) or not value.strip():
                raise row.error(f"{name!r} is {value!r}; it must be text that is not empty")
            return value
    raise row.error(f"none of the columns {', '.join(names)}; there is {sorted(row.fields)}")


def _always(name: str) -> Callable[[Row], str]:
    return lambda row: name


def _source(default: str) -> Callable[[Row], str]:
    return lambda row: str(row.fields.get("data_source") or default)


def _gsm8k_answer(row: Row) -> str:
    answer = gsm8k_answer(_text(row, ("answer",)))
    if answer is None:
        raise row.error("'answer' has no '#### ' with a number behind it")
    return answer


def _math_answer(row: Row) -> str:
    """The answer column, else the last box of the worked solution."""
    for name in _ANSWERS:
        value = row.fields.get(name)
        if value is not None and str(value).strip():
            return plain_number(without_dollars(str(value)))
    solution = _text(row, _SOLUTIONS)
    answer = last_boxed(solution)
    if answer is None:
        raise row.error(f"no column of {', '.join(_ANSWERS)}, and the solution has no \\boxed{{answer}}")
    return answer


def _olympiad_question(row: Row) -> str:
    context = row.fields.get("context")
    question = _text(row, ("question",))
    return f"{context}\n\n{question}" if isinstance(context, str) and context.strip() else question


def _olympiad_answer(row: Row) -> str:
    """All final answers, parted by commas: a problem with several asks for all of them."""
    answers = row.fields.get("final_answer")
    if isinstance(answers, str):
        answers = [answers]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise row.error(
            f"'final_answer' is {answers!r}; a problem that can be verified has a list of answers (proofs have none)"
        )
    return ", ".join(without_dollars(answer) for answer in answers)


def _leetcode_answer(row: Row) -> str:
    entry_point = row.fields.get("entry_point")
    try:
        return leetcode_tests(_text(row, ("test",)), None if entry_point is None else str(entry_point))
    except ValueError as error:
        raise error if str(row.path) in str(error) else row.error(str(error)) from error


def _starter(row: Row) -> str | None:
    """Code to complete, as an ending of the question; None without."""
    starter = row.fields.get("starter_code")
    if not isinstance(starter, str) or not starter.strip():
        return None
    return f"\n\nComplete this code:\n```python\n{starter}\n```"


def _leetcode_question(row: Row) -> str:
    return _text(row, _CODE_PROMPTS) + (_starter(row) or "")


def _livecodebench_question(row: Row) -> str:
    by_streams = "\n\nThe program reads from standard input and writes to standard output."
    return _text(row, ("question_content",)) + (_starter(row) or by_streams)


def _livecodebench_answer(row: Row) -> str:
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
"""Every layout but "columns", which the configuration describes."""
