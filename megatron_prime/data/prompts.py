"""Prompts to sample from: files -> tokenised `Prompt`s -> a resumable stream.

files -> reading.py -> PromptTable (compact) -> PromptDataset -> PromptStream -> rollout
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.columns import NamesColumn, TextColumn, TokensColumn
from megatron_prime.data.layouts import layout
from megatron_prime.data.mixing import make_order
from megatron_prime.data.reading import Fingerprint, ProblemReader, TokenizedProblem
from megatron_prime.types import Prompt


class PromptTable(Sequence[Prompt]):
    """Prompts in flat buffers; an item is made when it is asked for."""

    def __init__(self) -> None:
        self._indices = array("q")
        self._tokens = TokensColumn()
        self._answers = TextColumn()
        self._sources, self._abilities = NamesColumn(), NamesColumn()
        self.groups = NamesColumn()
        """Key of data.weights, by row."""

    def append(self, problem: TokenizedProblem) -> None:
        """Add a prompt."""
        self._indices.append(problem.index)
        self._tokens.append(problem.prompt_ids)
        self._answers.append(problem.answer)
        self._sources.append(problem.source)
        self._abilities.append(problem.ability)
        self.groups.append(problem.group)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, row: int) -> Prompt: ...

    @overload
    def __getitem__(self, row: slice) -> list[Prompt]: ...

    def __getitem__(self, row: int | slice) -> Prompt | list[Prompt]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        return Prompt(
            self._indices[row],
            self._tokens[row],
            self._answers[row],
            self._sources[row],
            self._abilities[row],
        )

    @property
    def kinds(self) -> set[tuple[str, str]]:
        """(data source, ability) of all prompts, each once."""
        return {(self._sources[row], self._abilities[row]) for row in range(len(self))}

    @property
    def num_bytes(self) -> int:
        """Size of the buffers in use."""
        columns = (self._tokens, self._answers, self._sources, self._abilities, self.groups)
        return len(self._indices) * self._indices.itemsize + sum(column.num_bytes for column in columns)


@dataclass(frozen=True, slots=True)
class PromptDataset:
    """Tokenised prompts in file order."""

    prompts: PromptTable
    """`Prompt.index` counts rows over all files, dropped ones included: it does not move with max_prompt_tokens."""
    num_dropped: int
    """Rows left out because the prompt was longer than max_prompt_tokens."""
    fingerprint: str
    """Hash of all prompts (index, tokens, answer, source, ability)."""
    notes: tuple[str, ...] = ()
    """What to log about rows left out; empty when all were taken."""
    num_bad_rows: int = 0
    """Rows left out because they did not fit (data.on_bad_row = "skip")."""
    num_duplicates: int = 0
    """Rows left out because their prompt had come before (data.dedup)."""

    def __len__(self) -> int:
        """Prompts kept."""
        return len(self.prompts)

    @staticmethod
    def read(
        paths: Sequence[Path], config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
    ) -> "PromptDataset":
        """Read and tokenise jsonl, parquet or csv files.

        Args:
            paths: `config.train` or `config.evaluation`.
            config: layout of the files, form of the prompts, and what to do about bad rows and duplicates.
            tokenizer: of the policy.
            max_prompt_tokens: longer prompts are dropped and counted.

        Raises:
            ValueError: no file, a missing one, a row that does not fit (named by file and row; unless such rows are
                skipped), or no prompt left.
        """
        if not paths:
            raise ValueError("no data files are given: set data.train (or data.evaluation)")
        reader = ProblemReader(paths, config, layout(config.layout, config), tokenizer)
        table, num_dropped, fingerprint = PromptTable(), 0, Fingerprint()
        for problem in reader:
            if len(problem.prompt_ids) > max_prompt_tokens:
                num_dropped += 1
                continue
            table.append(problem)
            fingerprint.add(
                problem.index, problem.prompt_ids, problem.answer, problem.source, problem.ability
            )
        if not len(table):
            reason = reader.why_empty(num_dropped, max_prompt_tokens)
            raise ValueError(f"the data set {', '.join(map(str, paths))} is empty: {reason}")
        too_long = (
            [f"{num_dropped} prompts are longer than {max_prompt_tokens} tokens"] if num_dropped else []
        )
        return PromptDataset(
            table,
            num_dropped,
            fingerprint.text(),
            (*too_long, *reader.duplicates.lines(), *reader.bad_rows.lines()),
            reader.bad_rows.num_rows,
            reader.duplicates.num_duplicates,
        )


class PromptStream:
    """Prompts in the order of training, resumable at any prompt. Endless: epochs follow each other."""

    def __init__(
        self,
        dataset: PromptDataset,
        seed: int,
        shuffle: bool = True,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Start at the first epoch; see `ResumableOrder` for the order and `MixedOrder` for that with weights.

        Raises:
            ValueError: a weight whose source or file has no prompt.
        """
        self._order = make_order(
            dataset.prompts,
            dataset.prompts.groups.__getitem__,
            weights or {},
            dataset.fingerprint,
            seed,
            shuffle,
        )

    @property
    def epoch(self) -> int:
        """Complete passes over the data so far; with weights, of the source with the fewest."""
        return self._order.epoch

    def next(self, num_prompts: int) -> list[Prompt]:
        """The next prompts; more than the data set holds runs into following epochs."""
        return self._order.next(num_prompts)

    def state_dict(self) -> dict[str, Any]:
        """Position and fingerprint of the data: plain JSON values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken. Raises ValueError when data, seed, shuffling or weights differ."""
        self._order.load_state_dict(state)
