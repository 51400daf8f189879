"""Reads the groups of rollout logs, and of files with responses as text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prime.data.responses.table import SavedResponse
from megatron_prime.observability.rollout_log import RolloutFile, log_folder, logged_steps
from megatron_prime.observability.rollout_log.turns import TURN_COLUMNS, logged_turns

if TYPE_CHECKING:
    from megatron_prime.data.responses.text import TextReader

_Group = tuple[str, Sequence[int], list[SavedResponse]]
"""Place in a file, prompt, and responses."""
_COLUMNS = ("group", "prompt_token_ids", "response_token_ids", "outcome_reward", *TURN_COLUMNS)


@dataclass
class Dropped:
    """Numbers of responses that were left out."""

    without_outcome: int = 0
    too_long: int = 0

    def lines(self, max_tokens: int) -> list[str]:
        """Return a log line for each reason that has left out a response."""
        counts = [
            (self.without_outcome, "without an outcome, as after verifier errors"),
            (self.too_long, f"longer than {max_tokens} tokens with their prompt"),
        ]
        return [f"left out: {count} responses {reason}" for count, reason in counts if count]


@dataclass
class GroupReader:
    """Reads the groups of rollout logs, and of files with responses as text.

    Attributes:
        tokenizer: hash of the tokenizer that the responses must be of; see hf/identity.py.
        vocab_size: of the models that score them.
        max_tokens: longer responses, with their prompt, are left out: of a part of one, the outcome is unknown.
            At most as many as the models have positions for.
        texts: reads files with other endings than .parquet; None if none will be read.
    """

    tokenizer: str
    vocab_size: int
    max_tokens: int
    texts: "TextReader | None" = None
    dropped: Dropped = field(default_factory=Dropped)

    def groups(self, path: Path) -> Iterator[tuple[Sequence[int], list[SavedResponse]]]:
        """Yield the prompt and the usable responses of each group of a file.

        Raises:
            ValueError: the file is damaged, or of another tokenizer.
        """
        groups = self._logged(path) if is_log(path) else self._written(path)
        for where, prompt_ids, group in groups:
            responses = [each for each in group if self._is_usable(where, prompt_ids, each)]
            self._check(where, [prompt_ids, *(each.token_ids for each in responses)])
            if responses:
                yield prompt_ids, responses

    def log_lines(self) -> list[str]:
        """Return log lines on what was left out of the files read so far."""
        return [*self.dropped.lines(self.max_tokens), *(self.texts.notes if self.texts else ())]

    def _logged(self, path: Path) -> Iterator[_Group]:
        """Yield the groups of a rollout log, with the place of each for messages."""
        with RolloutFile(path) as file:
            tokenizer = (file.info.model or {}).get("tokenizer", self.tokenizer)
            if tokenizer != self.tokenizer:
                raise ValueError(f"{path} was sampled with another tokenizer than that of model.path")
            for number, rows in groupby(file.rows(_COLUMNS), itemgetter("group")):
                group, where = list(rows), f"{path}, group {number}"
                yield where, group[0]["prompt_token_ids"], [_logged_response(row) for row in group]

    def _written(self, path: Path) -> Iterator[_Group]:
        """Yield the groups of a file with responses as text: the responses to one prompt, wherever they stand."""
        assert self.texts is not None
        groups: dict[tuple[int, ...], list[SavedResponse]] = {}
        for prompt_ids, response in self.texts.responses(path):
            groups.setdefault(prompt_ids, []).append(response)
        for number, (prompt_ids, group) in enumerate(groups.items()):
            yield f"{path}, prompt {number + 1}", prompt_ids, group

    def _is_usable(self, where: str, prompt_ids: Sequence[int], response: SavedResponse) -> bool:
        outcome, turns, length = response.outcome, response.turns, len(response.token_ids)
        if math.isnan(outcome):
            self.dropped.without_outcome += 1
        elif not 0 <= outcome <= 1:
            raise ValueError(f"{where}: its outcome {outcome} is not in [0, 1]")
        elif len(prompt_ids) + length > self.max_tokens:
            self.dropped.too_long += 1
        elif turns and turns[-1].end != length:
            raise ValueError(
                f"{where}: its turns end at token {turns[-1].end} of {length}: the file is damaged"
            )
        else:
            return True
        return False

    def _check(self, where: str, sequences: Sequence[Sequence[int]]) -> None:
        if not all(sequences):
            raise ValueError(f"{where}: its prompt or a response has no tokens")
        outside = [each for tokens in sequences for each in (max(tokens), min(tokens))]
        wrong = next((token for token in outside if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(
                f"{where}: token {wrong} is outside of the model's vocabulary of {self.vocab_size}: the responses "
                "are of another model"
            )


def _logged_response(row: Mapping[str, Any]) -> SavedResponse:
    outcome = row["outcome_reward"]
    return SavedResponse(
        row["response_token_ids"], math.nan if outcome is None else outcome, logged_turns(row)
    )


def is_log(path: Path) -> bool:
    """Return whether a file is taken for a rollout log, and not for responses as text."""
    return path.suffix == ".parquet"


def response_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are named by themselves, and rollout logs by their folder or by its run_dir.

    Raises:
        ValueError: nothing is named, or a path holds no rollout log.
    """
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = [*logged_steps(log_folder(path)).values()] or sorted(path.glob("*.parquet"))
        elif not path.is_file():
            raise ValueError(f"{path} does not exist (working directory: {Path.cwd()})")
        if not found:
            raise ValueError(
                f"{path} holds no rollout log: name a run_dir, its folder rollouts, or a file of `eval`"
            )
        files += found
    if not files:
        raise ValueError("no responses are named: set prm_training.responses to run_dirs or files of a log")
    return files
