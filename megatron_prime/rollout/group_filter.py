"""Which sampled groups may train, and why the others may not."""

import math
from collections.abc import Sequence
from enum import StrEnum

import torch

from megatron_prime.algorithm.filtering import accuracy_band_keep, truncation_keep, verified_keep
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.types import FinishReason, Rollout

_NUM_BINS = 5

Group = list[Rollout]
"""All rollouts of one prompt, by sample_index."""


class Verdict(StrEnum):
    """What becomes of a group; each dropped group is counted once, under the first reason that applies."""

    KEPT = "kept"
    ABORTED = "dropped_aborted"
    """A response was cut short by the engine."""
    VERIFIER_ERROR = "dropped_verifier_error"
    """An outcome is NaN."""
    TRUNCATED = "dropped_truncated"
    TOO_HARD = "dropped_too_hard"
    """Mean accuracy below the band."""
    TOO_EASY = "dropped_too_easy"
    """Mean accuracy above the band."""


def split_groups(
    rollouts: Sequence[Rollout], group_size: int, *, allow_mixed_versions: bool = False
) -> list[Group]:
    """Cut an engine's answer, which is ordered by prompt and sample, into groups.

    Raises:
        RuntimeError: a group lacks samples, mixes prompts, or mixes policy versions unless that is allowed.
    """
    if len(rollouts) % group_size:
        raise RuntimeError(
            f"the engine returned {len(rollouts)} rollouts, which is no multiple of {group_size}"
        )
    groups = [list(rollouts[start : start + group_size]) for start in range(0, len(rollouts), group_size)]
    for group in groups:
        index = group[0].prompt.index
        if any(rollout.prompt != group[0].prompt for rollout in group) or [
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
    """All policy versions that sampled a token of the group."""
    spans = {version for rollout in group for version, _, _ in rollout.version_spans}
    return spans | {rollout.policy_version for rollout in group}


def mean_accuracy(group: Group) -> float:
    """Mean outcome of a group; NaN after a verifier error."""
    return math.fsum(rollout.outcome_reward for rollout in group) / len(group)


def judge_groups(groups: Sequence[Group], config: FilterConfig) -> list[Verdict]:
    """One verdict a group. A disabled filter still drops aborted and unverified groups."""
    if not groups:
        return []
    rows = [(number, rollout) for number, group in enumerate(groups) for rollout in group]
    group_ids_B = torch.tensor([number for number, _ in rows])
    outcomes_B = torch.tensor([rollout.outcome_reward for _, rollout in rows])
    truncated_B = torch.tensor([rollout.finish_reason is FinishReason.LENGTH for _, rollout in rows])
    first_rows = torch.tensor([0, *(len(group) for group in groups[:-1])]).cumsum(0)

    def by_group(keep_B: torch.Tensor) -> list[bool]:
        return keep_B[first_rows].tolist()

    verified = by_group(verified_keep(outcomes_B, group_ids_B))
    whole = by_group(truncation_keep(truncated_B, group_ids_B, config.max_truncated_fraction))
    hard_enough = by_group(accuracy_band_keep(outcomes_B, group_ids_B, 0.0, config.accuracy_max))
    easy_enough = by_group(accuracy_band_keep(outcomes_B, group_ids_B, config.accuracy_min, 1.0))

    def judge(number: int) -> Verdict:
        if any(rollout.finish_reason is FinishReason.ABORT for rollout in groups[number]):
            return Verdict.ABORTED
        if not verified[number]:
            return Verdict.VERIFIER_ERROR
        if not config.enabled:
            return Verdict.KEPT
        if not whole[number]:
            return Verdict.TRUNCATED
        if not easy_enough[number]:
            return Verdict.TOO_HARD
        return Verdict.KEPT if hard_enough[number] else Verdict.TOO_EASY

    return [judge(number) for number in range(len(groups))]


def accuracy_histogram(groups: Sequence[Group]) -> str:
    """Counts of groups by mean accuracy as text, for error messages; verifier errors apart."""
    counts = [0] * _NUM_BINS
    num_errors = 0
    for group in groups:
        accuracy = mean_accuracy(group)
        if math.isnan(accuracy):
            num_errors += 1
        else:
            counts[min(int(accuracy * _NUM_BINS), _NUM_BINS - 1)] += 1
    bins = ", ".join(f"from {place / _NUM_BINS:.1f}: {count}" for place, count in enumerate(counts))
    return f"groups by mean accuracy {bins}; with verifier errors: {num_errors}"
