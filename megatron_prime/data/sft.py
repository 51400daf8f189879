"""Demonstrations (prompts with responses) for supervised fine-tuning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.columns import ColumnTable, TokensColumn
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.layouts import Layout, layout
from megatron_prime.data.messages import Message, conversation_of, first_answer, looks_like_messages
from megatron_prime.data.mixing import ResumableStream, make_stream
from megatron_prime.data.reading import Fingerprint, ProblemReader, TokenizedProblem
from megatron_prime.data.rows import DataRow
from megatron_prime.data.rows.json_text import shown
from megatron_prime.data.rows.row import is_blank, is_missing_text
from megatron_prime.types import Turn


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One demonstration."""

    prompt_ids: tuple[int, ...]
    """Prompt tokens with the chat template applied, as a rollout starts from them; never empty."""
    response_ids: tuple[int, ...]
    """Response tokens; the last one is the end-of-sequence token, so that the model learns to stop. Of several turns,
    the replies of users and tools between them too."""
    turns: tuple[Turn, ...] = ()
    """The turns, if there are several; see `Rollout.turns`."""


class ExampleTable(ColumnTable[SFTExample]):
    """Demonstrations in flat buffers; an `SFTExample` is built when it is accessed."""

    def __init__(self) -> None:
        super().__init__()
        self._prompts, self._responses = TokensColumn(), TokensColumn()
        # The ends of each turn and its reply, in turn.
        self._turn_ends = TokensColumn()

    def append(self, problem: TokenizedProblem) -> None:
        """Add a demonstration."""
        self._prompts.append(problem.prompt_ids)
        self._responses.append(problem.response_ids)
        self._turn_ends.append(end for turn in problem.turns for end in (turn.policy_end, turn.end))
        self.groups.append(problem.group)

    def _record(self, row: int) -> SFTExample:
        ends = self._turn_ends[row]
        return SFTExample(self._prompts[row], self._responses[row], tuple(map(Turn, ends[::2], ends[1::2])))


@dataclass(frozen=True, slots=True)
class SFTDataset:
    """Demonstrations in file order."""

    examples: ExampleTable
    num_dropped: int
    """Number of rows dropped because prompt and response together were longer than max_tokens."""
    fingerprint: str
    """Hash of all examples (prompt and response tokens)."""
    notes: tuple[str, ...] = ()
    """Log lines about bad rows and duplicates; empty when there were none."""

    def __len__(self) -> int:
        """Return the number of examples that were kept."""
        return len(self.examples)

    @staticmethod
    def read(
        paths: Sequence[Path],
        config: DataConfig,
        response_field: str,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        messages_field: str | None = None,
        tools: Sequence[Schema] | None = None,
    ) -> "SFTDataset":
        """Read and tokenize jsonl, parquet or csv files.

        Args:
            paths: The files, `sft.data`.
            config: Layout and format of the prompt, and the policies for bad rows and duplicates. Rows need no answer.
            response_field: Column with the response text; dots descend into objects.
            tokenizer: The policy's tokenizer.
            max_tokens: Longer examples are dropped and counted. They are never truncated, because a truncated response
                would teach the model not to stop.
            messages_field: Column with a whole conversation: the messages up to the first one of the assistant are the
                prompt, and all turns of the assistant are trained; the prompt column and `response_field` are then
                ignored.
            tools: Schemas of the environment's tools, which rollouts show to the policy; None without an environment.

        Raises:
            ValueError: If no file is given, a file is missing, a row is invalid (the error names file and row; with
                data.on_bad_row = "skip" such rows are dropped instead), or no example is left.
        """
        if not paths:
            raise ValueError("no demonstrations are given: set sft.data")
        reader = demonstration_reader(paths, config, response_field, tokenizer, messages_field, tools)
        table, num_dropped, fingerprint = ExampleTable(), 0, Fingerprint(config, tools)
        for problem in reader:
            if len(problem.prompt_ids) + len(problem.response_ids) > max_tokens:
                num_dropped += 1
                continue
            table.append(problem)
            fingerprint.add(problem.content, problem.answer)
        reader.require_rows(len(table), num_dropped, max_tokens)
        return SFTDataset(table, num_dropped, fingerprint.hexdigest(), tuple(reader.log_lines()))

    def stream(
        self, seed: int, shuffle: bool = True, weights: Mapping[str, float] | None = None
    ) -> ResumableStream[SFTExample]:
        """Return an endless stream of the examples, starting at the first epoch; see `make_stream`."""
        return make_stream(self.examples, self.fingerprint, seed, shuffle, weights or {})


def demonstration_data(config: PrimeConfig) -> DataConfig:
    """Return the settings of `[data]` with those of `[sft]` in their places."""
    layout_name = config.sft.layout or config.data.layout
    return config.data.model_copy(update={"layout": layout_name, "weights": config.sft.weights})


def demonstration_reader(
    paths: Sequence[Path],
    config: DataConfig,
    response_field: str,
    tokenizer: PreTrainedTokenizerBase,
    messages_field: str | None,
    tools: Sequence[Schema] | None = None,
) -> ProblemReader:
    """Return a reader whose problems have the response in the place of the answer; see `SFTDataset.read`."""
    row_layout, read_response = response_reader(config, response_field, messages_field)
    return ProblemReader(paths, config, row_layout.in_conversation(tools), tokenizer, read_response)


def response_reader(
    config: DataConfig, response_field: str, messages_field: str | None
) -> tuple[Layout, Callable[[DataRow], str | list[Message]]]:
    """Return the layout that reads the prompt of a row, and the function that reads its response.

    With `messages_field` the response is the messages of a conversation from the first of the assistant on.
    """
    # The layout reads the prompt alone: demonstrations have a response instead of an answer.
    base = layout(config.layout, config)
    if messages_field is not None:
        read_conversation = partial(conversation_of, field=messages_field)
    elif base.conversation is not None:
        read_conversation = base.conversation
    else:
        return base, lambda row: response_text(row, response_field)

    def split(row: DataRow) -> tuple[list[Message], list[Message]]:
        messages = read_conversation(row)
        start = first_answer(messages)
        assert start is not None, "a conversation has an answer"
        return messages[:start], messages[start:]

    return replace(base, prompt=lambda row: split(row)[0], is_question=False), lambda row: split(row)[1]


def response_text(row: DataRow, field: str) -> str:
    """Return the response of a row.

    Raises:
        ValueError: If the field is missing, not text, or blank.
    """
    response = row.field(field)
    if not isinstance(response, str) or is_blank(response) or is_missing_text(response):
        raise row.error(f"{field!r} is {shown(response)}; a response must be text that is not empty")
    if looks_like_messages(response):
        raise row.error(f"{field!r} is chat messages as text: sft.messages_field reads whole conversations")
    return response
