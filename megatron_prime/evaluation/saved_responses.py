"""Sampled responses with their outcomes, written by `eval` and read by `eval-prm`.

The files have the format of rollout logs. Files of earlier versions are read too, which are JSON lines: each line is
one problem, with its prompt_ids and a list of responses with text, token_ids and outcome (null after a verifier error).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from megatron_prime.data.rows import DataRow, read_rows
from megatron_prime.evaluation.accuracy import EvaluationResult
from megatron_prime.observability.rollout_log import FileInfo, RolloutFile, write_rollouts
from megatron_prime.observability.rollout_log.turns import TURN_COLUMNS, logged_turns
from megatron_prime.rollout.group_filter import split_groups
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.training.rollout_rows import rows_of_groups
from megatron_prime.types import Decoder, Rollout, Turn

_COLUMNS = (
    *("group", "prompt_token_ids", "response", "response_token_ids", "outcome_reward"),
    *TURN_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class SavedResponse:
    """A response read from a file."""

    text: str
    token_ids: tuple[int, ...]
    outcome: float
    """Verified outcome in [0, 1]; NaN after a verifier error."""
    turns: tuple[Turn, ...] = ()
    """The turns of a response to an environment; see `types.Rollout`."""


@dataclass(frozen=True, slots=True)
class SavedProblem:
    """A problem and its responses, in the order of sampling."""

    where: str
    """File and row, for error messages."""
    prompt_ids: tuple[int, ...]
    responses: tuple[SavedResponse, ...]


def write_responses(
    path: Path, info: FileInfo, rollouts: Sequence[Rollout], samples_per_prompt: int, tokenizer: Decoder
) -> None:
    """Write verified rollouts, ordered by prompt and sample, to `path`; the file is replaced atomically."""
    groups = [SampledGroup(group, None) for group in split_groups(rollouts, samples_per_prompt)]
    info = replace(
        info,
        policy_version=min((rollout.policy_version for rollout in rollouts), default=0),
        num_groups_sampled=len(groups),
        num_groups=len(groups),
    )
    write_rollouts(path, info, rows_of_groups(groups, tokenizer))


def write_response_files(
    folder: Path, results: Mapping[str, EvaluationResult], tokenizer: Decoder, model: Mapping[str, str]
) -> list[Path]:
    """Write the responses of each prompt set to `<name>.parquet` in `folder`, and return the paths.

    The held-out prompts, whose name is "", go to evaluation.parquet. `model` is the identity of the evaluated model.
    """
    folder.mkdir(exist_ok=True)
    paths = []
    for name, result in results.items():
        path = folder / f"{name or 'evaluation'}.parquet"
        info = FileInfo(0, "eval", name=name, model=model)
        write_responses(path, info, result.rollouts, result.samples_per_prompt, tokenizer)
        paths.append(path)
    return paths


def read_responses(path: Path) -> Iterator[SavedProblem]:
    """Yield the problems of a file of the rollout log's format, or of JSON lines.

    Raises:
        ValueError: the file is missing or damaged, or a row is malformed.
    """
    if path.suffix == ".parquet":
        yield from _logged(path)
        return
    for row in read_rows(path):
        prompt_ids = _token_ids(row, row.field("prompt_ids"))
        responses = row.field("responses")
        if not isinstance(responses, list) or not responses:
            raise row.error(
                "'responses' is not a list of responses; write the file with `megatron-prime eval`"
            )
        yield SavedProblem(
            f"{row.path}, row {row.number}", prompt_ids, tuple(_response(row, each) for each in responses)
        )


def _logged(path: Path) -> Iterator[SavedProblem]:
    with RolloutFile(path) as file:
        for group, rows_of_group in groupby(file.rows(_COLUMNS), itemgetter("group")):
            where, rows = f"{path}, group {group}", list(rows_of_group)
            if not all(row["prompt_token_ids"] and row["response_token_ids"] for row in rows):
                raise ValueError(f"{where}: its prompt or a response has no tokens")
            responses = [
                SavedResponse(
                    row["response"],
                    tuple(row["response_token_ids"]),
                    _outcome(row["outcome_reward"]),
                    logged_turns(row),
                )
                for row in rows
            ]
            yield SavedProblem(where, tuple(rows[0]["prompt_token_ids"]), tuple(responses))


def _outcome(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _response(row: DataRow, value: Any) -> SavedResponse:  # noqa: ANN401 - JSON values
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise row.error("a response has no 'text'")
    outcome = value.get("outcome")
    if outcome is not None and (not isinstance(outcome, int | float) or not 0 <= outcome <= 1):
        raise row.error(f"the outcome {outcome!r} of a response is not a number in [0, 1]")
    # The tokens are read and not recomputed from the text, because tokenizing a decoded text may give other tokens.
    token_ids = _token_ids(row, value.get("token_ids"))
    return SavedResponse(value["text"], token_ids, _outcome(outcome))


def _token_ids(row: DataRow, value: Any) -> tuple[int, ...]:  # noqa: ANN401 - JSON values
    if (
        not isinstance(value, list)
        or not value
        or not all(type(token) is int and token >= 0 for token in value)
    ):
        raise row.error("its token ids are not a list of integers; write the file with `megatron-prime eval`")
    return tuple(value)
