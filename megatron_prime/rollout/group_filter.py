"""The filter that decides which sampled groups enter a training batch."""

import math
from collections.abc import Sequence
from enum import StrEnum

from megatron_prime.algorithm.filtering import has_few_truncated, is_in_accuracy_band, is_verified
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


def decide_group(group: Group, config: FilterConfig) -> FilterDecision:
    """Return the decision on a group. A disabled filter still drops aborted groups and verifier errors."""
    outcomes = [rollout.outcome_reward for rollout in group]
    reasons = [rollout.finish_reason for rollout in group]
    is_truncated = [reason is FinishReason.LENGTH for reason in reasons]
    # The checks have the order of FilterDecision, so a group is counted under the first reason that applies.
    if FinishReason.ABORT in reasons:
        return FilterDecision.ABORTED
    if not is_verified(outcomes):
        return FilterDecision.VERIFIER_ERROR
    if not config.enabled:
        return FilterDecision.KEPT
    if not has_few_truncated(is_truncated, config.max_truncated_fraction):
        return FilterDecision.TRUNCATED
    if not is_in_accuracy_band(outcomes, config.accuracy_min, 1.0):
        return FilterDecision.TOO_HARD
    if not is_in_accuracy_band(outcomes, 0.0, config.accuracy_max):
        return FilterDecision.TOO_EASY
    return FilterDecision.KEPT


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
