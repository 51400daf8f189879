"""Reads the groups of rollout logs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from megatron_prime.data.responses.table import SavedResponse
from megatron_prime.observability.rollout_log import RolloutFile, log_folder, logged_steps
from megatron_prime.observability.rollout_log.turns import TURN_COLUMNS, logged_turns

_COLUMNS = ("group", "prompt_token_ids", "response_token_ids", "outcome_reward", *TURN_COLUMNS)


@dataclass
class Dropped:
    """Numbers of responses that were left out."""

    without_outcome: int = 0
    too_long: int = 0

    def lines(self, max_tokens: int) -> list[str]:
        """Return a log line for each reason that has left out a response."""
        counts = [
            (self.without_outcome, "without an outcome, after verifier errors"),
            (self.too_long, f"longer than {max_tokens} tokens with their prompt"),
        ]
        return [f"left out: {count} responses {reason}" for count, reason in counts if count]


@dataclass
class GroupReader:
    """Reads the groups of rollout logs.

    Attributes:
        tokenizer: hash of the tokenizer that the responses must be of; see hf/identity.py.
        vocab_size: of the models that score them.
        max_tokens: longer responses, with their prompt, are left out: of a part of one, the outcome is unknown.
            At most as many as the models have positions for.
    """

    tokenizer: str
    vocab_size: int
    max_tokens: int
    dropped: Dropped = field(default_factory=Dropped)

    def groups(self, path: Path) -> Iterator[tuple[Sequence[int], list[SavedResponse]]]:
        """Yield the prompt and the usable responses of each group of a file.

        Raises:
            ValueError: the file is damaged, or of another tokenizer.
        """
        with RolloutFile(path) as file:
            tokenizer = (file.info.model or {}).get("tokenizer", self.tokenizer)
            if tokenizer != self.tokenizer:
                raise ValueError(f"{path} was sampled with another tokenizer than that of model.path")
            for number, rows in groupby(file.rows(_COLUMNS), itemgetter("group")):
                group, where = list(rows), f"{path}, group {number}"
                prompt_ids = group[0]["prompt_token_ids"]
                responses = [
                    response for row in group if (response := self._response(where, row)) is not None
                ]
                self._check(where, [prompt_ids, *(each.token_ids for each in responses)])
                if responses:
                    yield prompt_ids, responses

    def _response(self, where: str, row: Mapping[str, Any]) -> SavedResponse | None:
        outcome, token_ids = row["outcome_reward"], row["response_token_ids"]
        if outcome is None or math.isnan(outcome):
            self.dropped.without_outcome += 1
        elif not 0 <= outcome <= 1:
            raise ValueError(f"{where}: its outcome {outcome} is not in [0, 1]")
        elif len(row["prompt_token_ids"]) + len(token_ids) > self.max_tokens:
            self.dropped.too_long += 1
        else:
            turns = logged_turns(row)
            if turns and turns[-1].end != len(token_ids):
                raise ValueError(
                    f"{where}: its turns end at token {turns[-1].end} of {len(token_ids)}: the file is damaged"
                )
            return SavedResponse(token_ids, outcome, turns)
        return None

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


def response_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of rollout logs that are named by themselves, by their folder or by its run_dir.

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
