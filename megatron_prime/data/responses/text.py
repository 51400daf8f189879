"""Reads responses with outcomes as text: those of any other program, or of people.

Each line of a file is one response. Prompt and response are read as those of a demonstration for `sft`, by [data] and
[sft]; `outcome_reward` is a number from 0 to 1, or null if it is unknown, and `finish_reason` may be "length" for a
response that was cut off, which then gets no end-of-sequence token.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.messages import Message
from megatron_prime.data.reading import ProblemReader
from megatron_prime.data.responses.table import SavedResponse
from megatron_prime.data.rows import DataRow
from megatron_prime.data.rows.json_text import shown
from megatron_prime.data.sft import demonstration_data, response_reader

OUTCOME = "outcome_reward"
FINISH = "finish_reason"
CUT_OFF = "length"


@dataclass(frozen=True, slots=True)
class _Label:
    """The outcome of a row, and the end of its response."""

    outcome: float
    """NaN if it is unknown."""
    is_cut_off: bool


@dataclass(frozen=True)
class TextReader:
    """Reads files of responses as text.

    Args:
        config: [data] and [sft] say where a row has its prompt and its response.
        tokenizer: that of model.path.
        tools: schemas of the environment's tools, which prompts show; None without an environment.
    """

    config: PrimeConfig
    tokenizer: PreTrainedTokenizerBase
    tools: Sequence[Schema] | None = None
    notes: list[str] = field(default_factory=list)
    """Log lines on rows that were left out, of the files read so far."""

    def responses(self, path: Path) -> Iterator[tuple[tuple[int, ...], SavedResponse]]:
        """Yield the prompt's tokens and the response of each row; its outcome is NaN if it is unknown.

        Raises:
            ValueError: the file cannot be read, or a row is invalid (the error names file and row; with
                data.on_bad_row = "skip" such rows are left out).
        """
        # The responses to one prompt are no duplicates.
        data = demonstration_data(self.config).model_copy(update={"dedup": "none", "weights": {}})
        sft = self.config.sft
        layout, read_response = response_reader(data, sft.response_field, sft.messages_field)
        labels: dict[int, _Label] = {}

        def read_labelled(row: DataRow) -> str | list[Message]:
            labels[reader.num_rows - 1] = _label(row)
            return read_response(row)

        layout = layout.in_conversation(self.tools)
        reader = ProblemReader([path], data, layout, self.tokenizer, read_labelled)
        for problem in reader:
            label = labels.pop(problem.index)
            token_ids = problem.response_ids[: -1 if label.is_cut_off else None]
            yield problem.prompt_ids, SavedResponse(token_ids, label.outcome, problem.turns)
        self.notes.extend(reader.log_lines())


def _label(row: DataRow) -> _Label:
    """Return the label of a row. Raises ValueError, which names the row, if it has no outcome or a wrong one."""
    value = row.field(OUTCOME)
    finish = row.fields.get(FINISH)
    if value is None:
        return _Label(math.nan, finish == CUT_OFF)
    try:
        outcome = float(value)
    except (TypeError, ValueError):
        outcome = math.nan
    if not 0 <= outcome <= 1:
        raise row.error(
            f"{OUTCOME!r} is {shown(value)}; it must be a number from 0 to 1, or null if it is unknown"
        )
    return _Label(outcome, finish == CUT_OFF)
