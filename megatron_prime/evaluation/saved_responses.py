"""Sampled responses with their outcomes as JSON lines files, written by `eval` and read by `eval-prm`.

Each line is one problem: index, prompt and its tokens, answer, source, ability, and a list of responses with text,
tokens, outcome (null after a verifier error) and finish_reason.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.data.rows import DataRow, read_rows
from megatron_prime.evaluation.accuracy import EvaluationResult
from megatron_prime.observability.durable import replace_file
from megatron_prime.types import Decoder, Rollout


@dataclass(frozen=True, slots=True)
class SavedResponse:
    """A response read from a file."""

    text: str
    token_ids: tuple[int, ...]
    outcome: float
    """Verified outcome in [0, 1]; NaN after a verifier error."""


@dataclass(frozen=True, slots=True)
class SavedProblem:
    """A problem and its responses, in the order of sampling."""

    where: str
    """File and row, for error messages."""
    prompt_ids: tuple[int, ...]
    responses: tuple[SavedResponse, ...]


def write_responses(
    path: Path, rollouts: Sequence[Rollout], samples_per_prompt: int, tokenizer: Decoder
) -> None:
    """Write verified rollouts, ordered by prompt and sample, to `path`; the file is replaced atomically."""
    lines = []
    for start in range(0, len(rollouts), samples_per_prompt):
        group = rollouts[start : start + samples_per_prompt]
        # The prompt is decoded with the special tokens of its chat template, the response as the verifier saw it.
        prompt = group[0].prompt
        record = {
            "index": prompt.index,
            "prompt": tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False),
            "prompt_ids": prompt.token_ids,
            "answer": prompt.answer,
            "source": prompt.source,
            "ability": prompt.ability,
            "responses": [
                {
                    "text": tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True),
                    "token_ids": rollout.response_ids,
                    "outcome": None if math.isnan(rollout.outcome_reward) else rollout.outcome_reward,
                    "finish_reason": rollout.finish_reason.value,
                }
                for rollout in group
            ],
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    replace_file(path, "".join(lines))


def write_response_files(
    folder: Path, results: Mapping[str, EvaluationResult], tokenizer: Decoder
) -> list[Path]:
    """Write the responses of each prompt set to `<name>.jsonl` in `folder`, and return the paths.

    The held-out prompts, whose name is "", go to evaluation.jsonl.
    """
    folder.mkdir(exist_ok=True)
    paths = []
    for name, result in results.items():
        path = folder / f"{name or 'evaluation'}.jsonl"
        write_responses(path, result.rollouts, result.samples_per_prompt, tokenizer)
        paths.append(path)
    return paths


def read_responses(path: Path) -> Iterator[SavedProblem]:
    """Yield the problems of a file written by `write_responses`.

    Raises:
        ValueError: the file is missing, or a row is malformed.
    """
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


def _response(row: DataRow, value: Any) -> SavedResponse:  # noqa: ANN401 - JSON values
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise row.error("a response has no 'text'")
    outcome = value.get("outcome")
    if outcome is not None and (not isinstance(outcome, int | float) or not 0 <= outcome <= 1):
        raise row.error(f"the outcome {outcome!r} of a response is not a number in [0, 1]")
    # The tokens are read and not recomputed from the text, because tokenizing a decoded text may give other tokens.
    token_ids = _token_ids(row, value.get("token_ids"))
    return SavedResponse(value["text"], token_ids, math.nan if outcome is None else float(outcome))


def _token_ids(row: DataRow, value: Any) -> tuple[int, ...]:  # noqa: ANN401 - JSON values
    if (
        not isinstance(value, list)
        or not value
        or not all(type(token) is int and token >= 0 for token in value)
    ):
        raise row.error("its token ids are not a list of integers; write the file with `megatron-prime eval`")
    return tuple(value)
