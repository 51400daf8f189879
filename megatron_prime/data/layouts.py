"""Layouts of known data sets: the columns in which they keep the problem and its answer.

A layout reads one row; its errors name the file and the row. Training data, benchmarks and `tools/convert_data.py`
share the layouts.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from megatron_prime.config.tables.data import DataConfig, LayoutName
from megatron_prime.data.code_tests import leetcode_tests, livecodebench_tests
from megatron_prime.data.conversations.tool_calls import Schema, schemas_of
from megatron_prime.data.final_answers import gsm8k_answer, last_boxed, plain_number, without_dollars
from megatron_prime.data.messages import (
    Message,
    begins_as_messages,
    checked_conversation,
    checked_messages,
    checked_prompt,
    first_answer,
    looks_like_messages,
    parsed_messages,
)
from megatron_prime.data.rows import DataRow, MissingFieldError
from megatron_prime.data.rows.json_text import parse_json, shown
from megatron_prime.data.rows.row import is_blank, is_missing_text

_QUESTIONS = ("problem", "question", "Problem", "Question")
_ANSWERS = ("answer", "Answer", "expected_answer", "final_answer")
_SOLUTIONS = ("solution", "Solution")
_SOURCE = "data_source"
_GSM8K_SOLUTION = re.compile(r"(?:\A|\n)\s*####\s*\S[^\n]*\s*\Z")
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*["']""")
"""The begin of a list of texts that was written as text, as CSV files hold it. An interval has no quotation marks."""
_MAX_ANSWER_DEPTH = 64
"""Levels of lists and objects in an answer; verifiers read it again with a limit of their own."""
_CODE_PROMPTS = ("prompt_sft", "question", "problem_description", "content", "prompt")


@dataclass(frozen=True, slots=True)
class Layout:
    """Functions that read the parts of a problem from a row; each raises ValueError naming the row."""

    prompt: Callable[[DataRow], str | list[Message]]
    answer: Callable[[DataRow], str]
    """Reads the ground truth in the format of the verifier for the row's ability."""
    source: Callable[[DataRow], str]
    ability: Callable[[DataRow], str]
    columns: tuple[str, ...]
    """The columns, or paths of names separated by dots, that these functions read; the others are metadata."""
    tools: Callable[[DataRow], list[Schema]] = lambda _: []
    """Reads the schemas of the row's own tools."""
    conversation: Callable[[DataRow], list[Message]] | None = None
    """Reads the whole conversation of a demonstration; None if the layout has none."""
    is_question: bool = True
    """True if the prompt is a bare question, which becomes a user message if the tokenizer has a chat template."""

    def in_conversation(self, tools: Sequence[Schema] | None) -> "Layout":
        """Return the layout for an environment with these tools, which its rows have before their own.

        The first message of a conversation is one of the user, so that a text becomes one if there is a chat template.
        None, for no environment, returns the layout itself.
        """
        if tools is None:
            return self
        own = self.tools
        return replace(self, is_question=True, tools=lambda row: [*tools, *own(row)])


def layout(name: LayoutName, config: DataConfig) -> Layout:
    """Return the layout of that name; `config` names the columns for the layout "columns"."""
    return _columns(config) if name == "columns" else LAYOUTS[name]


def _columns(config: DataConfig) -> Layout:
    names = (
        config.prompt_field,
        config.answer_field,
        config.source_field,
        config.ability_field,
        config.tools_field,
    )

    def optional(field: str | None) -> Callable[[DataRow], str]:
        return lambda row: "" if field is None else _label(row, field, row.field(field))

    return Layout(
        prompt=lambda row: _with_input(row, config.prompt_field, checked_prompt(row, config.prompt_field)),
        answer=lambda row: answer_text(row, config.answer_field),
        source=optional(config.source_field),
        ability=optional(config.ability_field),
        columns=tuple(name for name in names if name is not None),
        tools=lambda row: [] if config.tools_field is None else tool_schemas(row, config.tools_field),
        is_question=False,
    )


def _with_input(row: DataRow, field: str, prompt: str | list[Message]) -> str | list[Message]:
    """Return a prompt with the column that, in data in the format of Alpaca, holds a part of the question."""
    text = row.fields.get("input")
    if field != "instruction" or text is None or not isinstance(prompt, str):
        return prompt
    if not isinstance(text, str):
        raise row.error(f"'input', which belongs to 'instruction', is {shown(text)}; it must be text")
    return prompt if is_blank(text) else f"{prompt}\n\n{text}"


def tool_schemas(row: DataRow, field: str) -> list[Schema]:
    """Return the schemas of the tools of a row. Raises ValueError if the field is missing or holds something else."""
    try:
        return schemas_of(row.field(field))
    except MissingFieldError:
        raise
    except ValueError as error:
        raise row.error(f"{field!r} is {error}") from error


def answer_text(row: DataRow, field: str) -> str:
    """Return the ground truth as text: numbers by str, objects and lists (unit tests of code, alternatives) as JSON.

    A list of numbers becomes a JSON list of texts, which the math verifier takes as alternatives.

    Raises:
        ValueError: If the field is missing, null, blank, not finite, or of another type.
    """
    return _answer(row, field, row.field(field))


def _answer(row: DataRow, field: str, value: object) -> str:
    if value is None:
        raise row.error(f"{field!r} is null: the verifier needs a ground truth")
    if isinstance(value, str):
        fault = _text_fault(value)
        if fault is not None:
            raise row.error(f"{field!r} is {fault}")
        row.check_text("answer", value)
        return value
    if isinstance(value, dict | list):
        return _json_answer(row, field, value)
    if isinstance(value, int | float | Decimal):
        if not isinstance(value, int) and not math.isfinite(value):
            # pandas writes a missing value so.
            raise row.error(f"{field!r} is {value}: the verifier needs a ground truth, which this is not")
        return str(value)
    raise row.error(f"{field!r} is of the type {type(value).__name__}; an answer must be text or a number")


def _text_fault(text: str) -> str | None:
    """Return what a text is instead of an answer; None if it may be one."""
    if is_blank(text):
        return "empty: the verifier needs a ground truth"
    if is_missing_text(text):
        return f"the text {text!r}, as a missing value is written: the verifier needs a ground truth"
    if begins_as_messages(text):
        return "chat messages as text: the verifier needs the answer alone"
    if _GSM8K_SOLUTION.search(text):
        return "a worked solution that ends with '####' and the answer: data.layout = 'gsm8k' reads it"
    return None


def _json_answer(row: DataRow, field: str, value: dict[str, Any] | list[Any]) -> str:
    _check_parts(row, field, value)
    if isinstance(value, list):
        if all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value):
            raise row.error(f"{field!r} is a list of chat messages: the verifier needs the answer alone")
        if all(isinstance(item, int | float | Decimal) for item in value):
            # Alternatives; as JSON numbers they would be an interval or a vector to the math verifier.
            value = [str(item) for item in value]
    return json.dumps(value, default=str)


def _check_parts(row: DataRow, field: str, value: object, depth: int = 0) -> None:
    """Raise ValueError if a part of an answer cannot be written as JSON, or an element of a list is no answer."""
    if depth > _MAX_ANSWER_DEPTH:
        raise row.error(f"{field!r} is nested more than {_MAX_ANSWER_DEPTH} levels deep")
    if isinstance(value, dict):
        if not value:
            raise row.error(f"{field!r} is {{}}: the verifier needs a ground truth")
        json_fault = _json_fault(value, depth)
        if json_fault is not None:
            raise row.error(f"{field!r} {json_fault}")
    elif isinstance(value, list):
        if not value:
            raise row.error(f"{field!r} is []: the verifier needs a ground truth")
        for element in value:
            _check_parts(row, field, element, depth + 1)
    else:
        _answer(row, field, value)


def _json_fault(value: object, depth: int) -> str | None:
    """Return why a value cannot be written as JSON text, as the end of a sentence; None if it can."""
    if depth > _MAX_ANSWER_DEPTH:
        return f"is nested more than {_MAX_ANSWER_DEPTH} levels deep"
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return next(filter(None, (_json_fault(part, depth + 1) for part in parts)), None)
    if value is None or isinstance(value, str | int | float):
        return None
    return f"has a {type(value).__name__} in it, which JSON text cannot hold"


def _text(row: DataRow, names: Sequence[str]) -> str:
    """Return the text of the first of the columns that the row has."""
    for name in names:
        value = row.fields.get(name)
        if value is not None:
            if not isinstance(value, str) or is_blank(value) or is_missing_text(value):
                raise row.error(f"{name!r} is {shown(value)}; it must be text that is not empty")
            return value
    raise row.error(
        f"none of the columns {', '.join(names)} is present; the row has {sorted(row.fields)}",
        MissingFieldError,
    )


def _question(row: DataRow, names: Sequence[str]) -> str:
    """Return the text of a question; see `_text`."""
    question = _text(row, names)
    if looks_like_messages(question):
        raise row.error(
            "its question is chat messages as text: data.layout = 'columns' with data.prompt_field reads them"
        )
    return question


def _label(row: DataRow, field: str, value: object) -> str:
    """Return the source or ability of a row as text."""
    if isinstance(value, str) and not is_blank(value):
        return value
    if type(value) is int:
        return str(value)
    raise row.error(f"{field!r} is {shown(value)}; it must be a name")


def _optional_label(field: str) -> Callable[[DataRow], str]:
    return lambda row: "" if row.fields.get(field) is None else _label(row, field, row.fields[field])


def _sharegpt(row: DataRow) -> list[Message]:
    """Return the messages of a row with its system prompt, which may have a column of its own."""
    value = row.field("conversations")
    if isinstance(value, str):
        value = parsed_messages(row, "conversations", value)
    if not isinstance(value, list):
        raise row.error(f"'conversations' is {shown(value)}; it must be a list of messages")
    messages = checked_messages(row, "conversations", value)
    system = row.fields.get("system")
    if system is None or (isinstance(system, str) and is_blank(system)):
        return messages
    if not isinstance(system, str):
        raise row.error(f"'system' is {shown(system)}; it must be text")
    if messages[0]["role"] == "system":
        raise row.error("the row has a system prompt twice: in 'system', and as the first of 'conversations'")
    return [{"role": "system", "content": system}, *messages]


def _sharegpt_prompt(row: DataRow) -> list[Message]:
    messages = _sharegpt(row)
    return messages[: first_answer(messages)]


def _always(name: str) -> Callable[[DataRow], str]:
    return lambda row: name


def _source(default: str) -> Callable[[DataRow], str]:
    # A mixed file may name the source per row; the name of the layout is the default.
    def read(row: DataRow) -> str:
        value = row.fields.get(_SOURCE)
        return default if value is None or value == "" else _label(row, _SOURCE, value)

    return read


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
    question = _question(row, ("question",))
    # The context is part of the problem, but in a column of its own.
    return f"{context}\n\n{question}" if isinstance(context, str) and context.strip() else question


def _olympiad_answer(row: DataRow) -> str:
    """Return all final answers, separated by commas: a problem with several requires all of them."""
    answers: Any = row.fields.get("final_answer")
    if isinstance(answers, str) and _LIST_AS_TEXT.match(answers):
        try:
            answers = parse_json(answers)
        except ValueError as error:
            raise row.error(
                f"'final_answer' looks like a list, but is text that is not JSON ({error})"
            ) from error
    if isinstance(answers, str):
        answers = [answers]
    is_list = isinstance(answers, list) and bool(answers)
    if not is_list or not all(isinstance(answer, str) and not is_blank(answer) for answer in answers):
        raise row.error(
            f"'final_answer' is {shown(answers)}; only problems with a list of answers can be verified (proofs have "
            "none)"
        )
    return ", ".join(without_dollars(_answer(row, "final_answer", answer)) for answer in answers)


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
    return _question(row, _CODE_PROMPTS) + (_starter_code(row) or "")


def _livecodebench_question(row: DataRow) -> str:
    by_stdin = "\n\nThe program reads from standard input and writes to standard output."
    return _question(row, ("question_content",)) + (_starter_code(row) or by_stdin)


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
        source=lambda row: _label(row, "data_source", row.field("data_source")),
        ability=lambda row: _label(row, "ability", row.field("ability")),
        columns=("prompt", "reward_model.ground_truth", "data_source", "ability"),
        is_question=False,
    ),
    "verl": Layout(
        prompt=lambda row: checked_prompt(row, "prompt"),
        answer=lambda row: answer_text(row, "reward_model.ground_truth"),
        source=_optional_label("data_source"),
        ability=_optional_label("ability"),
        columns=("prompt", "reward_model.ground_truth", "data_source", "ability"),
        is_question=False,
    ),
    "sharegpt": Layout(
        prompt=_sharegpt_prompt,
        answer=lambda row: answer_text(row, "answer"),
        source=_optional_label("source"),
        ability=_optional_label("ability"),
        columns=("conversations", "system", "answer", "source", "ability", "tools"),
        tools=lambda row: tool_schemas(row, "tools") if "tools" in row.fields else [],
        conversation=lambda row: checked_conversation(row, "conversations", _sharegpt(row)),
        is_question=False,
    ),
    "gsm8k": Layout(
        lambda row: _question(row, ("question",)),
        _gsm8k_answer,
        _source("gsm8k"),
        _always("math"),
        ("question", "answer", _SOURCE),
    ),
    "math": Layout(
        lambda row: _question(row, _QUESTIONS),
        _math_answer,
        _source("math"),
        _always("math"),
        (*_QUESTIONS, *_ANSWERS, _SOURCE),
    ),
    "olympiadbench": Layout(
        _olympiad_question,
        _olympiad_answer,
        _source("olympiadbench"),
        _always("math"),
        ("question", "context", "final_answer", _SOURCE),
    ),
    "leetcode": Layout(
        _leetcode_question,
        _leetcode_answer,
        _source("leetcode"),
        _always("code"),
        (*_CODE_PROMPTS, "starter_code", "test", "entry_point", _SOURCE),
    ),
    "livecodebench": Layout(
        _livecodebench_question,
        _livecodebench_answer,
        _source("livecodebench"),
        _always("code"),
        ("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata", _SOURCE),
    ),
}
"""The layouts of `data.layout` by name, except "columns", whose columns the configuration names."""


def fitting_layout(row: DataRow, needs_answer: bool = True) -> str | None:
    """Return the first layout, by its name, that can read a row; None if there is none."""

    def fits(found: Layout) -> bool:
        try:
            parts = [found.prompt, found.source, found.ability, *([found.answer] if needs_answer else [])]
            return all(part(row) is not None for part in parts)
        except ValueError:
            return False

    candidates = {"columns": _columns(DataConfig()), **LAYOUTS}
    return next((name for name, found in candidates.items() if fits(found)), None)
