"""The prompts that rollouts are sampled from: files -> tokenized `Prompt`s -> a resumable stream.

files -> reading.py -> PromptTable (compact) -> PromptDataset -> stream (mixing.py) -> rollout
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.columns import CategoryColumn, ColumnTable, TextColumn, TokensColumn
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.layouts import layout
from megatron_prime.data.mixing import ResumableStream, make_stream
from megatron_prime.data.reading import Fingerprint, ProblemReader, TokenizedProblem
from megatron_prime.types import Prompt


class PromptTable(ColumnTable[Prompt]):
    """Prompts in flat buffers; a `Prompt` is built when it is accessed.

    Args:
        keeps_rows: whether prompts have messages and metadata, which may take more memory than everything else.
    """

    def __init__(self, keeps_rows: bool = False) -> None:
        super().__init__()
        self._rows = (TextColumn(), TextColumn()) if keeps_rows else ()
        self._indices = array("q")
        self._tokens = TokensColumn()
        self._answers = TextColumn()
        self._sources, self._abilities = CategoryColumn(), CategoryColumn()

    def append(self, problem: TokenizedProblem) -> None:
        """Add a prompt."""
        self._indices.append(problem.index)
        self._tokens.append(problem.prompt_ids)
        self._answers.append(problem.answer)
        self._sources.append(problem.source)
        self._abilities.append(problem.ability)
        self.groups.append(problem.group)
        for column, text in zip(self._rows, (problem.messages, problem.metadata), strict=False):
            column.append(text)

    def _record(self, row: int) -> Prompt:
        return Prompt(
            self._indices[row],
            self._tokens[row],
            self._answers[row],
            self._sources[row],
            self._abilities[row],
            *(column[row] for column in self._rows),
        )

    @property
    def kinds(self) -> set[tuple[str, str]]:
        """The distinct (data source, ability) pairs of all prompts."""
        return {(self._sources[row], self._abilities[row]) for row in range(len(self))}

    def __sizeof__(self) -> int:
        """Return the bytes of the buffers that are in use."""
        columns = (self._tokens, self._answers, self._sources, self._abilities, self.groups, *self._rows)
        return len(self._indices) * self._indices.itemsize + sum(column.__sizeof__() for column in columns)


@dataclass(frozen=True, slots=True)
class PromptDataset:
    """Tokenized prompts in file order."""

    prompts: PromptTable
    """The prompts. `Prompt.index` counts the rows of all files including dropped ones, so that it does not change with
    max_prompt_tokens."""
    num_dropped: int
    """Number of rows dropped because the prompt was longer than max_prompt_tokens."""
    fingerprint: str
    """Hash of all prompts as the files have them (index, content, answer, source, ability) and of the settings; where
    rows are kept, followed by + and a hash of their metadata."""
    notes: tuple[str, ...] = ()
    """Log lines about dropped rows; empty when every row was kept."""
    num_bad_rows: int = 0
    """Number of rows dropped because they could not be read (data.on_bad_row = "skip")."""
    num_duplicates: int = 0
    """Number of rows dropped because an earlier row has the same prompt (data.dedup)."""

    def __len__(self) -> int:
        """Return the number of prompts that were kept."""
        return len(self.prompts)

    @staticmethod
    def read(
        paths: Sequence[Path],
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        check_answer: Callable[[str, str, str], None] | None = None,
        keeps_rows: bool = False,
        tools: Sequence[Schema] | None = None,
    ) -> "PromptDataset":
        """Read and tokenize jsonl, parquet or csv files.

        Args:
            paths: The files, `config.train` or `config.evaluation`.
            config: Layout of the files, prompt format, and the policies for bad rows and duplicates.
            tokenizer: The policy's tokenizer.
            max_prompt_tokens: Longer prompts are dropped and counted.
            check_answer: Raises ValueError if no verifier can use the data source, ability and answer of a row.
            keeps_rows: Whether prompts have messages and metadata; see `PrimeConfig.reads_rows`.
            tools: Schemas of the environment's tools, which the chat template writes into every prompt; None without an
                environment.

        Raises:
            ValueError: If no file is given, a file is missing, a row is invalid (the error names file and row; with
                data.on_bad_row = "skip" such rows are dropped instead), or no prompt is left.
        """
        if not paths:
            raise ValueError("no data files are given: set data.train (or data.evaluation)")
        rows = layout(config.layout, config).in_conversation(tools)
        reader = ProblemReader(
            paths, config, rows, tokenizer, check_answer=check_answer, keeps_rows=keeps_rows
        )
        table, num_dropped, fingerprint = PromptTable(keeps_rows), 0, Fingerprint(config, tools)
        metadata = Fingerprint()
        for problem in reader:
            # A truncated prompt would be another problem than the one that the answer belongs to.
            if len(problem.prompt_ids) > max_prompt_tokens:
                num_dropped += 1
                continue
            # The table is filled while reading, so that no list of all problems is in memory.
            table.append(problem)
            # The answer is part of the fingerprint: resuming with corrected answers would mix two data sets in one
            # run.
            fingerprint.add(problem.index, problem.content, problem.answer, problem.source, problem.ability)
            metadata.add(problem.metadata)
        reader.require_rows(len(table), num_dropped, max_prompt_tokens)
        too_long = (
            [f"{num_dropped} prompts are longer than {max_prompt_tokens} tokens"] if num_dropped else []
        )
        return PromptDataset(
            table,
            num_dropped,
            fingerprint.hexdigest() + (f"+{metadata.hexdigest()}" if keeps_rows else ""),
            (*too_long, *reader.log_lines()),
            reader.bad_rows.num_rows,
            reader.duplicates.num_duplicates,
        )

    def stream(
        self, seed: int, shuffle: bool = True, weights: Mapping[str, float] | None = None
    ) -> ResumableStream[Prompt]:
        """Return an endless stream of the prompts, starting at the first epoch; see `make_stream`."""
        return make_stream(self.prompts, self.fingerprint, seed, shuffle, weights or {})
