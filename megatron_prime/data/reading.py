"""From files to tokenised problems, a batch of rows at a time: what prompts and demonstrations share.

files -> Row (rows.py) -> prompt and answer (layouts.py) -> duplicates out -> chat template -> token ids
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.bad_rows import BadRows
from megatron_prime.data.duplicates import DuplicateFinder
from megatron_prime.data.layouts import Layout, Message
from megatron_prime.data.rendering import PromptRenderer, Rendered
from megatron_prime.data.rows import Row, read_rows

BATCH_ROWS = 256
"""Rows tokenised at once: enough for the tokenizer's threads, little enough to hold."""


@dataclass(frozen=True, slots=True)
class TokenizedProblem:
    """A row that fits."""

    index: int
    """Row in the data set, counted over its files, rows left out included."""
    group: str
    """Of data.weights: the row's source where that is named there, else its file; "" without weights."""
    prompt_ids: tuple[int, ...]
    answer: str
    source: str
    ability: str


@dataclass(frozen=True, slots=True)
class _Problem:
    index: int
    row: Row
    rendered: Rendered
    answer: str
    source: str
    ability: str


class ProblemReader:
    """Reads the files of one data set once.

    Args:
        paths: the files, in order.
        config: layout, prompt text, and what to do about bad rows, duplicates and weights.
        layout: where things stand in a row.
        tokenizer: of the policy.
        read_target: answer or response of a row, given its prompt; raises ValueError naming the row.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        config: DataConfig,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        read_target: Callable[[Row], str] | None = None,
    ) -> None:
        self._paths = paths
        self._layout = layout
        self._config = config
        self._renderer = PromptRenderer(config, tokenizer)
        self._read_target = read_target or layout.answer
        self._groups = FileGroups(config.weights)
        self.bad_rows = BadRows(config.on_bad_row)
        self.duplicates = DuplicateFinder(config.dedup)
        self.num_rows = 0
        """Rows seen, those left out included."""

    def __iter__(self) -> Iterator[TokenizedProblem]:
        """Problems in file order.

        Raises:
            ValueError: a missing or unreadable file, or a row that does not fit where such rows stop the run.
        """
        batch: list[_Problem] = []
        for problem in self._problems():
            batch.append(problem)
            if len(batch) == BATCH_ROWS:
                yield from self._tokenized(batch)
                batch = []
        yield from self._tokenized(batch)

    def _problems(self) -> Iterator[_Problem]:
        for path in self._paths:
            for row in read_rows(path, self._refuse_line):
                index = self.num_rows
                self.num_rows += 1
                try:
                    problem = self._problem(index, row)
                except ValueError as error:
                    self.bad_rows.refuse(error)
                    continue
                if problem is not None:
                    yield problem

    def _refuse_line(self, error: ValueError) -> None:
        self.num_rows += 1
        self.bad_rows.refuse(error)

    def _problem(self, index: int, row: Row) -> _Problem | None:
        """None for a duplicate. Raises ValueError for a row that does not fit."""
        layout = self._layout
        prompt = layout.prompt(row)
        answer = self._read_target(row)
        source, ability = layout.source(row), layout.ability(row)
        try:
            rendered = self._renderer.render(prompt, layout.is_question)
        except ValueError as error:
            raise row.error(str(error)) from error
        # Judged by what the data says: system prompt and instruction are the same for all.
        if self.duplicates.is_duplicate(plain_text(prompt), answer):
            return None
        return _Problem(index, row, rendered, answer, source, ability)

    def _tokenized(self, batch: Sequence[_Problem]) -> Iterator[TokenizedProblem]:
        token_ids = self._renderer.tokenize([problem.rendered for problem in batch])
        for problem, prompt_ids in zip(batch, token_ids, strict=True):
            if not prompt_ids:
                reason = f"the prompt has no tokens: {problem.rendered.text!r}"
                self.bad_rows.refuse(problem.row.error(reason))
                continue
            # Never skipped: a key that is missing from data.weights is a mistake there, not in the row.
            group = self._groups.group_of(problem.row, problem.source)
            yield TokenizedProblem(
                problem.index, group, tuple(prompt_ids), problem.answer, problem.source, problem.ability
            )

    def why_empty(self, num_too_long: int, max_tokens: int) -> str:
        """What became of all rows, for the error when none is left."""
        if not self.num_rows:
            return "it has no rows"
        reasons = []
        if num_too_long:
            reasons.append(f"{num_too_long} longer than {max_tokens} tokens")
        if self.bad_rows.num_rows:
            reasons.append(f"{self.bad_rows.num_rows} that do not fit, such as {self.bad_rows.examples[0]!r}")
        return f"of its {self.num_rows} rows none is left: {'; '.join(reasons)}"


class FileGroups:
    """Which key of data.weights a row belongs to."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights

    def group_of(self, row: Row, source: str) -> str:
        """The key that names the row's source, else its file by path or by name; "" without weights.

        Raises:
            ValueError: weights are given, and none of them is the row's.
        """
        if not self._weights:
            return ""
        for key in (source, str(row.path), row.path.name):
            if key in self._weights:
                return key
        raise row.error(
            f"data.weights has neither the source {source!r} nor the file {row.path.name!r}: it names "
            f"{sorted(self._weights)}"
        )


def plain_text(prompt: str | Sequence[Message]) -> str:
    """Text of a prompt, whatever its form."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


class Fingerprint:
    """Hash over records of tokens and texts; changes with any of them and with their order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, *parts: int | str | Sequence[int]) -> None:
        """Take one record in."""
        for part in parts:
            if isinstance(part, str):
                data = part.encode("utf-8", "surrogatepass")
            else:
                data = array("q", [part] if isinstance(part, int) else part).tobytes()
            # The length parts the fields: ("ab", "c") is not ("a", "bc").
            self._digest.update(len(data).to_bytes(8, "little"))
            self._digest.update(data)

    def text(self) -> str:
        """16 hexadecimal digits."""
        return self._digest.hexdigest()[:16]
