"""Reader of tokenized problems, shared by prompts and demonstrations.

    files -> DataRow (rows.py) -> prompt and answer (layouts.py) -> drop duplicates -> chat template -> token ids

Rows are read one at a time and tokenized in batches, so that memory does not grow with the files.
"""

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.bad_rows import ADVICE, BadRows
from megatron_prime.data.conversations.demonstrations import turn_texts, turn_tokens
from megatron_prime.data.conversations.literal_text import unmarked
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.duplicates import DuplicateFinder
from megatron_prime.data.layouts import Layout, fitting_layout
from megatron_prime.data.messages import Message, is_conversation, message_text
from megatron_prime.data.rendering import PromptRenderer, Rendered
from megatron_prime.data.rows import DataRow, MetadataReader, MissingFieldError, RenderingError, read_rows
from megatron_prime.types import Turn

BATCH_ROWS = 256
"""Number of rows tokenized at once: enough to use the tokenizer's threads, few enough to hold in memory."""


@dataclass(frozen=True, slots=True)
class TokenizedProblem:
    """A valid row, rendered and tokenized."""

    index: int
    """Row number in the data set from 0, counting the rows of all files including dropped ones."""
    group: str
    """Key of data.weights: the row's source if that is a key, otherwise its file; "" without weights."""
    prompt_ids: tuple[int, ...]
    answer: str
    source: str
    ability: str
    content: str
    """The prompt as the file has it, without what the configuration and the chat template add."""
    response_ids: tuple[int, ...] = ()
    """Tokens of the response of a demonstration, which end with the end of sequence."""
    turns: tuple[Turn, ...] = ()
    """The turns of a demonstration that has several."""
    messages: str = ""
    """Messages of the prompt as the template gets them, as a JSON list; empty unless rows are kept."""
    metadata: str = ""
    """The other columns of the row as a JSON object; empty unless rows are kept."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of reading rows without rendering and tokenizing them."""

    num_rows: int
    is_whole: bool
    """False if the time did not suffice for all rows."""
    kinds: frozenset[tuple[str, str]]
    """The distinct (data source, ability) pairs."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The fields of a row."""

    prompt: str | Sequence[Message]
    answer: str | Sequence[Message]
    """The ground truth, or the response of a demonstration: text, or messages from the assistant's first on."""
    source: str
    ability: str
    tools: Sequence[Schema]
    """The row's own tools."""


@dataclass(frozen=True, slots=True)
class _Problem:
    index: int
    row: DataRow
    content: str
    rendered: Rendered
    answer: str
    source: str
    ability: str
    messages: str = ""
    metadata: str = ""
    texts: Sequence[str] = ()
    """The turns and replies of a demonstration; see `turn_texts`."""


class ProblemReader:
    """Reads the files of one data set once.

    Args:
        paths: The files, in order.
        config: Prompt format, and the policies for bad rows, duplicates and weights.
        layout: Reads the parts of a problem from a row.
        tokenizer: The policy's tokenizer.
        read_target: Reads the response of a row, text or messages that begin and end with the assistant's, which takes
            the place of the layout's answer and will be tokenized, and raises ValueError naming the row.
        check_answer: Raises ValueError if no verifier can use the data source, ability and answer of a row.
        keeps_rows: Whether problems have the messages of the prompt and the row's other columns.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        config: DataConfig,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        read_target: Callable[[DataRow], str | list[Message]] | None = None,
        check_answer: Callable[[str, str, str], None] | None = None,
        keeps_rows: bool = False,
    ) -> None:
        self._paths = paths
        self._layout = layout
        self._config = config
        self._tokenizer = tokenizer
        self._renderer = PromptRenderer(config, tokenizer)
        self._read_target = read_target or layout.answer
        self._has_responses = read_target is not None
        self._check_answer = check_answer
        self._groups = WeightGroups(config.weights)
        self._metadata = MetadataReader(layout.columns) if keeps_rows else None
        self.bad_rows = BadRows(config.on_bad_row)
        self.duplicates = DuplicateFinder(config.dedup)
        self.num_rows = 0
        """Number of rows read so far, including dropped ones."""
        self._num_good = 0
        """Number of rows of the current file whose fields could be read."""

    def __iter__(self) -> Iterator[TokenizedProblem]:
        """Yield the problems in file order.

        Raises:
            ValueError: If a file is missing or unreadable, or a row is invalid and data.on_bad_row is "stop".
        """
        batch: list[_Problem] = []
        for problem in self._problems():
            batch.append(problem)
            if len(batch) == BATCH_ROWS:
                yield from self._tokenized(batch)
                batch = []
        yield from self._tokenized(batch)

    def scan(self, seconds: float) -> Scan:
        """Check the fields of each row, for at most this time: 200,000 rows of 350 bytes take about 3 s.

        Raises:
            ValueError: If a file is missing or unreadable, or a row is invalid and data.on_bad_row is "stop".
        """
        deadline = time.monotonic() + seconds
        kinds: set[tuple[str, str]] = set()
        for path in self._paths:
            for row in self._rows(path):
                try:
                    parts = self._parts(row)
                except ValueError as error:
                    self._reject(row, error)
                    continue
                self._num_good += 1
                self._groups.group_of(row, parts.source)
                kinds.add((parts.source, parts.ability))
                if self.num_rows % BATCH_ROWS == 0 and time.monotonic() > deadline:
                    return Scan(self.num_rows, False, frozenset(kinds))
        return Scan(self.num_rows, True, frozenset(kinds))

    def log_lines(self) -> list[str]:
        """Return log lines about the tokenizer, and about the duplicates, bad rows and metadata met so far."""
        metadata = [] if self._metadata is None else self._metadata.log_lines()
        return [
            *self._renderer.log_lines(),
            *self.duplicates.log_lines(),
            *self.bad_rows.log_lines(),
            *metadata,
        ]

    def require_rows(self, num_kept: int, num_too_long: int, max_tokens: int) -> None:
        """Check that rows are left after reading.

        Raises:
            ValueError: If none is left; the error counts the rows by the reason why they were dropped.
        """
        if not num_kept:
            reason = self.empty_reason(num_too_long, max_tokens)
            raise ValueError(f"the data set {', '.join(map(str, self._paths))} is empty: {reason}")

    def empty_reason(self, num_too_long: int, max_tokens: int) -> str:
        """Return why no row is left."""
        if not self.num_rows:
            return "it has no rows"
        reasons = []
        if num_too_long:
            reasons.append(f"{num_too_long} longer than {max_tokens} tokens")
        if self.bad_rows.num_rows:
            reasons.append(f"{self.bad_rows.num_rows} invalid, such as {self.bad_rows.examples[0]!r}")
        return f"of its {self.num_rows} rows none is left: {'; '.join(reasons)}"

    def _rows(self, path: Path) -> Iterator[DataRow]:
        """Yield and count the rows of a file. Raises ValueError if it has none that can be used."""
        num_before, num_bad_before = self.num_rows, self.bad_rows.num_rows
        self._num_good = 0
        for row in read_rows(path, self._reject_line):
            self.num_rows += 1
            yield row
        num_rows, num_bad = self.num_rows - num_before, self.bad_rows.num_rows - num_bad_before
        # Otherwise a whole file of several would be missing.
        if not num_rows:
            raise ValueError(f"data file {path} has no rows")
        if num_bad == num_rows:
            raise ValueError(
                f"no row can be used: of its {num_rows} rows none is left: {num_bad} invalid, such as "
                f"{self.bad_rows.latest!r}"
            )

    def _problems(self) -> Iterator[_Problem]:
        for path in self._paths:
            for row in self._rows(path):
                index = self.num_rows - 1
                try:
                    problem = self._problem(index, row)
                except ValueError as error:
                    self._reject(row, error)
                    continue
                self._num_good += 1
                if problem is not None:
                    yield problem

    def _reject_line(self, error: ValueError) -> None:
        # A line that is not a record still counts, so that the index of later rows does not depend on the policy.
        self.num_rows += 1
        self.bad_rows.reject(error)

    def _reject(self, row: DataRow, error: ValueError) -> None:
        advice = ADVICE
        if isinstance(error, RenderingError) and not self._num_good:
            advice = f"data.chat_template_file names another template; {ADVICE}"
        if isinstance(error, MissingFieldError) and not self._num_good:
            # Leaving out rows would leave out all of them.
            advice = self._layout_advice(row)
        self.bad_rows.reject(error, advice)

    def _layout_advice(self, row: DataRow) -> str:
        """Return the settings that fit a row which lacks a column."""
        name = fitting_layout(row, needs_answer=not self._has_responses)
        is_other = name not in (None, self._config.layout)
        columns = "" if self._config.layout == "columns" else "with data.layout = 'columns', "
        if not self._has_responses:
            fields = (
                f"{columns}name the columns of this file by data.prompt_field, data.answer_field and the like"
            )
            return f"data.layout = {name!r} fits this row" if is_other else fields
        conversations = [key for key, value in row.fields.items() if is_conversation(value)]
        if conversations:
            return f"sft.messages_field = {conversations[0]!r} fits this row"
        fields = "name the columns of this file by sft.messages_field, or by data.prompt_field and sft.response_field"
        return (
            f"sft.layout = {name!r} fits this row, and sft.response_field names the response"
            if is_other
            else fields
        )

    def _parts(self, row: DataRow) -> _Parts:
        """Return the fields of a row. Raises ValueError for an invalid row."""
        layout = self._layout
        parts = _Parts(
            layout.prompt(row),
            self._read_target(row),
            layout.source(row),
            layout.ability(row),
            layout.tools(row),
        )
        texts = {"prompt": prompt_text(parts.prompt), "source": parts.source, "ability": parts.ability}
        if self._has_responses:
            texts["response"] = prompt_text(parts.answer)
        for name, text in texts.items():
            row.check_text(name, text)
        if self._check_answer is not None:
            assert isinstance(parts.answer, str), "ground truths are text"
            try:
                self._check_answer(parts.source, parts.ability, parts.answer)
            except ValueError as error:
                raise row.error(str(error)) from error
        return parts

    def _problem(self, index: int, row: DataRow) -> _Problem | None:
        """Return the problem of a row, or None for a duplicate. Raises ValueError for an invalid row."""
        parts = self._parts(row)
        prompt, answer = parts.prompt, parts.answer
        turns: Sequence[str] = ()
        try:
            rendered = self._renderer.render(prompt, self._layout.is_question, parts.tools)
            if self._has_responses:
                turns = turn_texts(
                    self._renderer, self._renderer.complete(prompt), rendered, answer, parts.tools
                )
                answer = unmarked("".join(turns))
        except ValueError as error:
            raise row.error(str(error), type(error)) from error
        assert isinstance(answer, str), "ground truths are text"
        # Duplicates are compared before rendering: system prompt and instruction are the same for all rows.
        if self.duplicates.is_duplicate(prompt_text(prompt), answer):
            return None
        content = prompt if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True)
        messages = metadata = ""
        if self._metadata is not None:
            messages = json.dumps(self._renderer.complete(prompt), ensure_ascii=False)
            metadata = self._metadata.text(row)
        return _Problem(
            index, row, content, rendered, answer, parts.source, parts.ability, messages, metadata, turns
        )

    def _tokenized(self, batch: Sequence[_Problem]) -> Iterator[TokenizedProblem]:
        for problem, prompt_ids in zip(batch, self._prompt_ids(batch), strict=True):
            try:
                if isinstance(prompt_ids, ValueError):
                    raise prompt_ids
                if not prompt_ids:
                    raise ValueError(f"the prompt has no tokens: {problem.rendered.text!r}")
                response_ids, turns = (
                    turn_tokens(problem.texts, self._tokenizer) if problem.texts else ((), ())
                )
            except ValueError as error:
                self.bad_rows.reject(problem.row.error(str(error)))
                continue
            # Not subject to on_bad_row: a missing key of data.weights is a mistake in the configuration.
            group = self._groups.group_of(problem.row, problem.source)
            yield TokenizedProblem(
                problem.index,
                group,
                tuple(prompt_ids),
                problem.answer,
                problem.source,
                problem.ability,
                problem.content,
                response_ids,
                turns,
                problem.messages,
                problem.metadata,
            )

    def _prompt_ids(self, batch: Sequence[_Problem]) -> Sequence[list[int] | ValueError]:
        """Return the tokens of each prompt, or why the tokenizer fails on it."""
        try:
            return self._renderer.tokenize([problem.rendered for problem in batch])
        except ValueError as error:
            if len(batch) == 1:
                return [error]
        return [self._prompt_ids([problem])[0] for problem in batch]


class WeightGroups:
    """Assigns each row to a key of data.weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights

    def group_of(self, row: DataRow, source: str) -> str:
        """Return the key that names the row's source, else its file by path or by name; "" without weights.

        Raises:
            ValueError: If there are weights and none of their keys names the row's source or file.
        """
        if not self._weights:
            return ""
        for key in (source, str(row.path), row.path.name):
            if key in self._weights:
                return key
        raise row.error(
            f"data.weights has neither the source {source!r} nor the file {row.path.name!r}: its keys are "
            f"{sorted(self._weights)}"
        )


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """Return the text of a prompt, joining the texts of chat messages by newlines."""
    return prompt if isinstance(prompt, str) else "\n".join(message_text(message) for message in prompt)


class Fingerprint:
    """A hash over records of numbers and texts that changes with any of them and with their order.

    The identity of a data set is the content of its files and the settings that form prompts from it. Rendered prompts
    are no part of it: another version of the template engine may render white space differently. Whoever changes
    what is added raises `ordering.FORMAT`.

    Args:
        config: Settings of the data set; default none.
        tools: Schemas of the environment; None without one.
    """

    def __init__(self, config: DataConfig | None = None, tools: Sequence[Schema] | None = None) -> None:
        self._digest = hashlib.sha256()
        if tools is not None:
            self.add(json.dumps(list(tools), sort_keys=True))
        if config is not None:
            template = config.chat_template_file
            self.add(
                config.model_dump_json(include={"system_prompt", "instruction", "chat_template", "date"}),
                "" if template is None else template.read_text(encoding="utf-8-sig"),
            )

    def add(self, *parts: int | str | Sequence[int]) -> None:
        """Add one record."""
        for part in parts:
            if isinstance(part, str):
                data = part.encode("utf-8", "surrogatepass")
            else:
                data = array("q", [part] if isinstance(part, int) else part).tobytes()
            # The length separates the fields: ("ab", "c") must not hash like ("a", "bc").
            self._digest.update(len(data).to_bytes(8, "little"))
            self._digest.update(data)

    def hexdigest(self) -> str:
        """Return the first 16 hexadecimal digits of the hash."""
        return self._digest.hexdigest()[:16]
