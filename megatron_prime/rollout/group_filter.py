"""The filter that decides which sampled groups enter a training batch."""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum

import torch

from megatron_prime.algorithm.filtering import accuracy_band_keep, truncation_keep, verified_keep
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.types import FinishReason, Rollout

_NUM_BINS = 5

Group = list[Rollout]
"""All rollouts of one prompt, ordered by sample_index."""


class FilterDecision(StrEnum):
    """The filter's decision on a group; a dropped group has the first reason that applies, in the order below."""

    KEPT = "kept"
    ABORTED = "dropped_aborted"
    """The engine aborted a response."""
    VERIFIER_ERROR = "dropped_verifier_error"
    """The verifier failed on a response, so its outcome is NaN."""
    TRUNCATED = "dropped_truncated"
    """Too many responses reached the length limit."""
    TOO_HARD = "dropped_too_hard"
    """The mean accuracy is below filter.accuracy_min."""
    TOO_EASY = "dropped_too_easy"
    """The mean accuracy is above filter.accuracy_max."""


def split_groups(
    rollouts: Sequence[Rollout], group_size: int, *, allow_mixed_versions: bool = False
) -> list[Group]:
    """Split the rollouts of an engine, which are ordered by prompt and sample, into groups.

    Raises:
        RuntimeError: a group is incomplete, mixes prompts, or mixes policy versions without `allow_mixed_versions`.
    """
    if len(rollouts) % group_size:
        raise RuntimeError(
            f"the engine returned {len(rollouts)} rollouts, which is not a multiple of {group_size}"
        )
    groups = [list(rollouts[start : start + group_size]) for start in range(0, len(rollouts), group_size)]
    for group in groups:
        index = group[0].prompt.index
        # The index and not the tokens: an environment that failed to start has not written its prompt.
        if any(rollout.prompt.index != index for rollout in group) or [
            rollout.sample_index for rollout in group
        ] != list(range(group_size)):
            raise RuntimeError(
                f"the engine's rollouts of prompt {index} are not ordered by prompt and sample"
            )
        versions = sorted(_versions(group))
        if len(versions) > 1 and not allow_mixed_versions:
            raise RuntimeError(f"the group of prompt {index} mixes policy versions {versions}")
    return groups


def _versions(group: Group) -> set[int]:
    """Return all policy versions that sampled a token of the group."""
    # policy_version is the version of the first token only; a weight sync may have interrupted the response.
    spans = {version for rollout in group for version, _, _ in rollout.version_spans}
    return spans | {rollout.policy_version for rollout in group}


def mean_accuracy(group: Group) -> float:
    """Return the mean outcome of a group; NaN after a verifier error."""
    return math.fsum(rollout.outcome_reward for rollout in group) / len(group)


def decide_groups(groups: Sequence[Group], config: FilterConfig) -> list[FilterDecision]:
    """Return the decision on each group. A disabled filter still drops aborted groups and verifier errors."""
    if not groups:
        return []
    rows = [(index, rollout) for index, group in enumerate(groups) for rollout in group]
    group_ids_B = torch.tensor([index for index, _ in rows])
    outcomes_B = torch.tensor([rollout.outcome_reward for _, rollout in rows])
    truncated_B = torch.tensor([rollout.finish_reason is FinishReason.LENGTH for _, rollout in rows])
    first_rows = torch.tensor([0, *(len(group) for group in groups[:-1])]).cumsum(0)

    # The functions of the paper give every row of a group the same value, so its first row has the decision. Each takes
    # fifty operations, and a step decides on a thousand groups, one by one: those that cannot matter are not called.
    def by_group(keep: Callable[..., torch.Tensor], values_B: torch.Tensor, *bounds: float) -> list[bool]:
        return keep(values_B, group_ids_B, *bounds)[first_rows].tolist()

    aborted = [any(each.finish_reason is FinishReason.ABORT for each in group) for group in groups]
    verified = by_group(verified_keep, outcomes_B)
    not_truncated = hard_enough = easy_enough = [True] * len(groups)
    if config.enabled:
        low, high = config.accuracy_min, config.accuracy_max
        if truncated_B.any():
            not_truncated = by_group(truncation_keep, truncated_B, config.max_truncated_fraction)
        if not all(by_group(accuracy_band_keep, outcomes_B, low, high)):
            hard_enough = by_group(accuracy_band_keep, outcomes_B, 0.0, high)
            easy_enough = by_group(accuracy_band_keep, outcomes_B, low, 1.0)
    # The checks have the order of FilterDecision, so a group is counted under the first reason that applies.
    reasons = {
        FilterDecision.ABORTED: [not each for each in aborted],
        FilterDecision.VERIFIER_ERROR: verified,
        FilterDecision.TRUNCATED: not_truncated,
        FilterDecision.TOO_HARD: easy_enough,
        FilterDecision.TOO_EASY: hard_enough,
    }
    return [
        next((reason for reason, keeps in reasons.items() if not keeps[index]), FilterDecision.KEPT)
        for index in range(len(groups))
    ]


def accuracy_histogram(groups: Sequence[Group]) -> str:
    """Return a histogram of the groups' mean accuracies as text, with verifier errors counted separately."""
    counts = [0] * _NUM_BINS
    num_errors = 0
    for group in groups:
        accuracy = mean_accuracy(group)
        if math.isnan(accuracy):
            num_errors += 1
        else:
            # An accuracy of exactly 1 belongs to the last bin.
            counts[min(int(accuracy * _NUM_BINS), _NUM_BINS - 1)] += 1
    bins = ", ".join(f"from {index / _NUM_BINS:.1f}: {count}" for index, count in enumerate(counts))
    return f"groups by mean accuracy {bins}; with verifier errors: {num_errors}"
