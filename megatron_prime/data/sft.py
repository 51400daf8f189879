"""Prompts with responses, for the supervised warm-up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.columns import NamesColumn, TokensColumn
from megatron_prime.data.layouts import Layout, Message, checked_messages, layout
from megatron_prime.data.mixing import make_order
from megatron_prime.data.reading import Fingerprint, ProblemReader
from megatron_prime.data.rows import Row
from megatron_prime.data.tokenizer import end_of_sequence


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One demonstration."""

    prompt_ids: tuple[int, ...]
    """Never empty, chat template applied: the same tokens that a rollout starts from."""
    response_ids: tuple[int, ...]
    """The end-of-sequence token last, so that the model learns to stop."""


class ExampleTable(Sequence[SFTExample]):
    """Demonstrations in flat buffers; an item is made when it is asked for."""

    def __init__(self) -> None:
        self._prompts, self._responses = TokensColumn(), TokensColumn()
        self.groups = NamesColumn()
        """Key of data.weights, by row."""

    def append(self, prompt_ids: Sequence[int], response_ids: Sequence[int], group: str) -> None:
        """Add a demonstration."""
        self._prompts.append(prompt_ids)
        self._responses.append(response_ids)
        self.groups.append(group)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, row: int) -> SFTExample: ...

    @overload
    def __getitem__(self, row: slice) -> list[SFTExample]: ...

    def __getitem__(self, row: int | slice) -> SFTExample | list[SFTExample]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        return SFTExample(self._prompts[row], self._responses[row])


@dataclass(frozen=True, slots=True)
class SFTDataset:
    """Demonstrations in file order."""

    examples: ExampleTable
    num_dropped: int
    """Rows left out because prompt and response together were longer than max_tokens."""
    fingerprint: str
    notes: tuple[str, ...] = ()
    """What to log about rows left out; empty when all were taken."""

    def __len__(self) -> int:
        """Examples kept."""
        return len(self.examples)

    @staticmethod
    def read(
        paths: Sequence[Path],
        config: DataConfig,
        response_field: str,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        messages_field: str | None = None,
    ) -> "SFTDataset":
        """Read and tokenise jsonl, parquet or csv files.

        Args:
            paths: `sft.data`.
            config: where the prompt stands, its form, and what to do about bad rows and duplicates; no answer is
                needed.
            response_field: column with the response text; dots descend.
            tokenizer: of the policy.
            max_tokens: longer examples are dropped and counted (never cut: a cut trace teaches not to stop).
            messages_field: column with a whole conversation instead: its last message, the assistant's, is the
                response, what comes before the prompt. Prompt and response field are then not used.

        Raises:
            ValueError: no file, a missing one, a row that does not fit (named by file and row; unless such rows are
                skipped), or no example left.
        """
        if not paths:
            raise ValueError("no demonstrations are given: set sft.data")
        found, read_response = _columns(config, response_field, messages_field)
        reader = ProblemReader(paths, config, found, tokenizer, read_response)
        table, num_dropped, fingerprint = ExampleTable(), 0, Fingerprint()
        for problem in reader:
            response_ids = response_token_ids(problem.answer, tokenizer)
            if len(problem.prompt_ids) + len(response_ids) > max_tokens:
                num_dropped += 1
                continue
            table.append(problem.prompt_ids, response_ids, problem.group)
            fingerprint.add(problem.prompt_ids, response_ids)
        if not len(table):
            reason = reader.why_empty(num_dropped, max_tokens)
            raise ValueError(f"the data set {', '.join(map(str, paths))} is empty: {reason}")
        notes = (*reader.duplicates.lines(), *reader.bad_rows.lines())
        return SFTDataset(table, num_dropped, fingerprint.text(), notes)


def _columns(
    config: DataConfig, response_field: str, messages_field: str | None
) -> tuple[Layout, Callable[[Row], str]]:
    """Where prompt and response stand."""
    found = layout(config.layout, config)
    if messages_field is None:
        return found, lambda row: response_text(row, response_field)
    field = messages_field
    conversation = replace(found, prompt=lambda row: conversation_of(row, field)[:-1], is_question=False)
    return conversation, lambda row: conversation_of(row, field)[-1]["content"]


def response_text(row: Row, field: str) -> str:
    """The response of a row. Raises ValueError when it is no text or empty."""
    response = row.field(field)
    if not isinstance(response, str) or not response.strip():
        raise row.error(f"{field!r} is {response!r}; a response is text that is not empty")
    return response


def conversation_of(row: Row, field: str) -> list[Message]:
    """Chat messages that end with one of the assistant. Raises ValueError for anything else."""
    value = row.field(field)
    if not isinstance(value, list):
        raise row.error(f"{field!r} is a {type(value).__name__}; a conversation is a list of chat messages")
    messages = checked_messages(row, field, value)
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise row.error(
            f"{field!r} must hold a prompt and, last, a message of the assistant that is not empty; its roles are "
            f"{[message['role'] for message in messages]}"
        )
    return messages


class SFTStream:
    """Demonstrations in the order of training, resumable at any example. Endless."""

    def __init__(
        self, dataset: SFTDataset, seed: int, shuffle: bool = True, weights: Mapping[str, float] | None = None
    ) -> None:
        """Start at the first epoch; see `ResumableOrder` for the order and `MixedOrder` for that with weights."""
        self._order = make_order(
            dataset.examples,
            dataset.examples.groups.__getitem__,
            weights or {},
            dataset.fingerprint,
            seed,
            shuffle,
        )

    @property
    def epoch(self) -> int:
        """Complete passes over the data so far."""
        return self._order.epoch

    def next(self, num_examples: int) -> list[SFTExample]:
        """The next examples; more than the data set holds runs into following epochs."""
        return self._order.next(num_examples)

    def state_dict(self) -> dict[str, Any]:
        """Position and fingerprint of the data: plain JSON values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken. Raises ValueError when data, seed or shuffling differ."""
        self._order.load_state_dict(state)


def response_token_ids(response: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens of a response, with exactly one end-of-sequence token, last.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token.
    """
    eos = end_of_sequence(tokenizer)
    token_ids = tokenizer.encode(response, add_special_tokens=False)
    while token_ids and token_ids[-1] == eos:
        token_ids.pop()
    return (*token_ids, eos)
