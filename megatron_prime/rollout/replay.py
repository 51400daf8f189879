"""Replay of logged rollouts: training batches from a rollout log, without an engine and without verifiers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prime.observability.rollout_log import RolloutFile, step_path
from megatron_prime.observability.rollout_log.turns import TURN_COLUMNS, logged_turns
from megatron_prime.rollout.collector import Collector
from megatron_prime.rollout.group_filter import Group
from megatron_prime.types import FinishReason, Prompt, Rollout

COLUMNS = (
    *("group", "sample", "round", "prompt_index", "source", "ability", "ground_truth", "prompt_token_ids"),
    *(
        "response_token_ids",
        "rollout_logprobs",
        "outcome_reward",
        "reason",
        "finish_reason",
        "policy_version",
    ),
    *TURN_COLUMNS,
)
"""Columns that a replay reads."""


class LoggedGroups:
    """The sampled groups of a rollout log, read step by step.

    Args:
        folder: the folder of the log's files.
        most_tokens: (prompt, response) tokens that the run has room for.
    """

    def __init__(self, folder: Path, most_tokens: tuple[int, int]) -> None:
        self._folder = folder
        self._most_tokens = most_tokens
        self._step_index = -1
        self._rounds: list[list[Group]] = []
        self._sizes: list[int] = []

    def sampled(self, step_index: int, round_index: int) -> tuple[list[Group], int]:
        """Return the logged groups of a round, and how many groups the round has sampled; none after the last round.

        Raises:
            ValueError: the file of the step is missing or damaged, or a sequence is longer than the run allows.
        """
        if step_index != self._step_index:
            self._read(step_index)
        if round_index >= len(self._rounds):
            return [], 0
        return self._rounds[round_index], self._sizes[round_index]

    def _read(self, step_index: int) -> None:
        path = step_path(self._folder, step_index + 1)
        with RolloutFile(path) as file:
            self._sizes = list(file.info.num_groups_by_round)
            rounds: list[dict[int, Group]] = [{} for _ in self._sizes]
            for row in file.rows(COLUMNS):
                rollout = _rollout(row)
                lengths = len(rollout.prompt.token_ids), len(rollout.response_ids)
                if any(length > most for length, most in zip(lengths, self._most_tokens, strict=True)):
                    raise ValueError(
                        f"{path} holds a prompt of {lengths[0]} and a response of {lengths[1]} tokens, more than "
                        "rollout.max_prompt_tokens and max_response_tokens allow: raise them"
                    )
                rounds[row["round"]].setdefault(row["group"], []).append(rollout)
        self._rounds = [list(groups.values()) for groups in rounds]
        self._step_index = step_index


def _rollout(row: Mapping[str, Any]) -> Rollout:
    prompt = Prompt(
        row["prompt_index"],
        tuple(row["prompt_token_ids"]),
        row["ground_truth"],
        row["source"],
        row["ability"],
    )
    outcome = row["outcome_reward"]
    return Rollout(
        prompt,
        row["sample"],
        tuple(row["response_token_ids"]),
        tuple(row["rollout_logprobs"]),
        FinishReason(row["finish_reason"]),
        row["policy_version"],
        float("nan") if outcome is None else outcome,
        reason=row["reason"],
        turns=logged_turns(row),
    )


class ReplayCollector(Collector):
    """A collector of logged groups, with their logged outcomes. The filter and the batch are as configured.

    If the log holds all groups of a step, the batch is that of the run that wrote it.
    """

    logged: LoggedGroups
    """Must be set before the first step."""

    def _sample_groups(self, num_prompts: int, step_index: int, round_index: int) -> list[Group]:
        groups, num_sampled = self.logged.sampled(step_index, round_index)
        if num_sampled:
            # The stream moves as in the run that sampled, so that this run's checkpoints continue where that one's do.
            self._prompts.next(num_sampled)
        return groups
