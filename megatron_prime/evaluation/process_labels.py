"""Labelled data for judging a PRM: ProcessBench files and files of preference pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.messages import Message, checked_prompt, looks_like_messages
from megatron_prime.data.reading import prompt_text
from megatron_prime.data.rendering import PromptRenderer
from megatron_prime.data.rows import DataRow, read_rows
from megatron_prime.data.rows.row import is_blank
from megatron_prime.data.steps import token_spans
from megatron_prime.data.tokenizer import encode

STEP_SEPARATOR = "\n\n"
"""Separator at which ProcessBench split its solutions into steps: the default of a row."""


@dataclass(frozen=True, slots=True)
class TextSolution:
    """A solution as text, with a label for its first wrong step."""

    row: DataRow
    """The row that it comes from."""
    problem: str
    steps: tuple[str, ...]
    label: int
    """Index of the first wrong step, from 0; -1 if all steps are correct."""
    separator: str = STEP_SEPARATOR
    """The text between two steps."""

    @property
    def where(self) -> str:
        """File and row, for error messages."""
        return f"{self.row.path}, row {self.row.number}"


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution with a label for its first wrong step."""

    where: str
    """File and row, for error messages."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    token_steps: tuple[int, ...]
    """Step index of each response token."""
    num_steps: int
    label: int
    """Index of the first wrong step, from 0; -1 if all steps are correct."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A preferred and a rejected response to one prompt."""

    where: str
    """File and row, for error messages."""
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


def read_solutions(path: Path) -> Iterator[TextSolution]:
    """Yield the solutions of a file with the columns problem, steps (a list of strings) and label.

    Steps are joined by the column separator, which is STEP_SEPARATOR where a row has none.

    Raises:
        ValueError: the file is missing, or a row is malformed.
    """
    for row in read_rows(path):
        problem, steps, label = row.field("problem"), row.field("steps"), row.field("label")
        if not isinstance(problem, str) or is_blank(problem):
            raise row.error("'problem' must be a non-empty string")
        if (
            not isinstance(steps, list)
            or not steps
            or not all(isinstance(step, str) and step for step in steps)
        ):
            raise row.error("'steps' must be a list of non-empty strings")
        row.check_text("problem", problem)
        # isinstance would accept true and false, which are subclasses of int.
        if type(label) is not int or not -1 <= label < len(steps):
            raise row.error(
                f"'label' is {label!r}: it must be -1, or the index of one of the {len(steps)} steps, from 0"
            )
        separator = row.fields.get("separator")
        if separator is not None and not isinstance(separator, str):
            raise row.error(f"'separator' is {separator!r}: it must be a string, the text between two steps")
        yield TextSolution(
            row, problem, tuple(steps), label, STEP_SEPARATOR if separator is None else separator
        )


def solution_tokenizer(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> Callable[[TextSolution], LabelledSolution]:
    """Return the function that tokenizes solutions; it raises ValueError, which names the row, where it cannot."""
    encode = _prompt_encoder(config, tokenizer)

    def tokenized(solution: TextSolution) -> LabelledSolution:
        row, steps = solution.row, solution.steps
        response_ids = _tokens(row, "steps", solution.separator.join(steps), tokenizer)
        spans, start = [], 0
        for step in steps:
            # The separator after a step belongs to that step, so the spans cover the text without gaps.
            end = start + len(step) + len(solution.separator)
            spans.append((start, end))
            start = end
        token_steps = token_spans(tokenizer, response_ids, spans)  # type: ignore[arg-type]
        return LabelledSolution(
            solution.where,
            encode(row, solution.problem),
            response_ids,
            tuple(token_steps),
            len(steps),
            solution.label,
        )

    return tokenized


def read_processbench(
    path: Path, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> Iterator[LabelledSolution]:
    """Yield the tokenized solutions of a file; see `read_solutions`.

    Raises:
        ValueError: the file is missing, or a row is malformed.
    """
    yield from map(solution_tokenizer(config, tokenizer), read_solutions(path))


def read_pairs(path: Path, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Pair]:
    """Yield the pairs of a file with the columns prompt (a string or messages), chosen and rejected (strings).

    Raises:
        ValueError: the file is missing, or a row is malformed.
    """
    encode = _prompt_encoder(config, tokenizer)
    for row in read_rows(path):
        responses = []
        for name in ("chosen", "rejected"):
            text = row.field(name)
            if not isinstance(text, str) or is_blank(text):
                raise row.error(f"{name!r} must be a non-empty string")
            if looks_like_messages(text):
                raise row.error(f"{name!r} is chat messages as text; it must be the text of the response")
            responses.append(_tokens(row, name, text, tokenizer))
        prompt_ids = encode(row, checked_prompt(row, "prompt"))
        yield Pair(f"{row.path}, row {row.number}", prompt_ids, *responses)


def _prompt_encoder(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> Callable[[DataRow, str | list[Message]], tuple[int, ...]]:
    renderer = PromptRenderer(config, tokenizer)

    def encode(row: DataRow, prompt: str | list[Message]) -> tuple[int, ...]:
        row.check_text("prompt", prompt_text(prompt))
        try:
            (token_ids,) = renderer.tokenize([renderer.render(prompt, is_question=True)])
        except ValueError as error:
            raise row.error(str(error)) from error
        if not token_ids:
            raise row.error("the prompt has no tokens")
        return tuple(token_ids)

    return encode


def _tokens(row: DataRow, name: str, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens of a response. Raises ValueError, which names the row, if it has none."""
    row.check_text(name, text)
    try:
        (token_ids,) = encode(tokenizer, [text])
    except ValueError as error:
        raise row.error(f"{name!r}: {error}") from error
    if not token_ids:
        raise row.error(f"{name!r} has no tokens")
    return tuple(token_ids)
