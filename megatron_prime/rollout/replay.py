"""Replay of logged rollouts: training batches from a rollout log, without an engine and without verifiers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prime.observability.rollout_log import RolloutFile, step_path
from megatron_prime.observability.rollout_log.turns import TURN_COLUMNS, logged_turns
from megatron_prime.observability.rollout_log.versions import VERSION_COLUMNS, logged_versions
from megatron_prime.rollout.collector import Collector
from megatron_prime.rollout.group_filter import FilterDecision, Group
from megatron_prime.rollout.prefix import Prefix
from megatron_prime.types import FinishReason, Prompt, Rollout

COLUMNS = (
    *("group", "sample", "prompt_index", "source", "ability", "ground_truth", "prompt_token_ids"),
    *(
        "response_token_ids",
        "rollout_logprobs",
        "outcome_reward",
        "reason",
        "finish_reason",
        "policy_version",
    ),
    *TURN_COLUMNS,
    *VERSION_COLUMNS,
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

    def sampled(self, step_index: int) -> tuple[list[Group], int]:
        """Return the logged groups of a step in order, and how many groups the step has sampled.

        Raises:
            ValueError: the file of the step is missing or damaged, or a sequence is longer than the run allows.
        """
        path = step_path(self._folder, step_index + 1)
        groups: dict[int, Group] = {}
        with RolloutFile(path) as file:
            num_sampled = file.info.num_groups_sampled
            for row in file.rows(COLUMNS):
                rollout = _rollout(row)
                lengths = len(rollout.prompt.token_ids), len(rollout.response_ids)
                if any(length > most for length, most in zip(lengths, self._most_tokens, strict=True)):
                    raise ValueError(
                        f"{path} holds a prompt of {lengths[0]} and a response of {lengths[1]} tokens, more than "
                        "rollout.max_prompt_tokens and max_response_tokens allow: raise them"
                    )
                groups.setdefault(row["group"], []).append(rollout)
        return list(groups.values()), num_sampled


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
        version_spans=logged_versions(row),
        reason=row["reason"],
        turns=logged_turns(row),
    )


class ReplayCollector(Collector):
    """A collector of logged groups, with their logged outcomes. The filter and the batch are as configured.

    If the log holds all groups of a step, the batch is that of the run that wrote it.
    """

    logged: LoggedGroups
    """Must be set before the first step."""

    def _sample(self, step_index: int) -> tuple[list[tuple[Group, FilterDecision]], dict[str, float]]:
        groups, num_sampled = self.logged.sampled(step_index)
        # A log of an earlier version may have groups behind the one that filled the batch.
        prefix = Prefix(self.size.prompts_per_step, len(groups), None)
        prefix.num_submitted = len(groups)
        for number, group in enumerate(groups):
            prefix.decide(number, group, self.decide(group))
        # The prompts move as in the run that sampled, so that this run's checkpoints continue where that one's do.
        self.prompts.take(num_sampled)
        return prefix.groups(), {}
