"""Counts and statistics of one step's collection."""

import math
from collections import Counter
from collections.abc import Sequence

from megatron_prime.rollout.group_filter import FilterDecision, Group, accuracy_histogram, mean_accuracy
from megatron_prime.rollout.sampled_groups import TRIMMED, SampledGroup
from megatron_prime.types import FinishReason, Rollout

_ADVICE = {
    FilterDecision.TOO_HARD: "Most are too hard: warm the policy up by SFT, use easier prompts, raise "
    "rollout.group_size or lower filter.accuracy_min",
    FilterDecision.TOO_EASY: "Most are too easy: use harder prompts, raise rollout.group_size or "
    "filter.accuracy_max",
    FilterDecision.TRUNCATED: "Most are truncated: raise rollout.max_response_tokens or "
    "filter.max_truncated_fraction",
    FilterDecision.VERIFIER_ERROR: "Most had verifier errors: check reward.verifier, reward.timeout_s and the "
    "answers in the data",
    FilterDecision.ABORTED: "Most were aborted by the engine: see its log",
    FilterDecision.KEPT: "Most were kept",
}


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def rollout_stats(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the truncated fraction and the mean length of responses; NaN if there are none."""
    return {
        "truncated_fraction": mean(
            [float(rollout.finish_reason is FinishReason.LENGTH) for rollout in rollouts]
        ),
        "mean_response_tokens": mean([float(len(rollout.response_ids)) for rollout in rollouts]),
    }


def environment_stats(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return statistics of responses to environments.

    The keys are mean_turns, mean_policy_tokens (without replies), and num_failed_episodes (of which each cost an
    attempt at a response).
    """
    return {
        "mean_turns": mean([float(len(rollout.turns) or 1) for rollout in rollouts]),
        "mean_policy_tokens": mean([float(rollout.num_policy_tokens) for rollout in rollouts]),
        "num_failed_episodes": float(sum(rollout.num_failed_episodes for rollout in rollouts)),
    }


def accuracy_by_source(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the mean outcome of each named data source, without verifier errors."""
    sources = sorted({rollout.prompt.source for rollout in rollouts} - {""})
    return {
        source: mean([rollout.outcome_reward for rollout in rollouts if rollout.prompt.source == source])
        for source in sources
    }


class CollectionTally:
    """Counts of the groups that one step has sampled.

    Args:
        groups: the groups in the order of their prompts, kept or dropped.
        decisions: the filter's decision on each.
    """

    def __init__(self, groups: Sequence[Group], decisions: Sequence[FilterDecision]) -> None:
        self.groups = list(groups)
        """All groups, kept or dropped."""
        self.decisions = Counter(decisions)
        self._decision_of_group = list(decisions)

    @property
    def keep_rate(self) -> float:
        """Fraction of groups that passed the filter, smoothed to be in (0, 1]; 1 without groups."""
        # Add-one smoothing: a step without kept groups must not make the next one sample without bound.
        return (self.decisions[FilterDecision.KEPT] + 1) / (len(self.groups) + 1)

    @property
    def num_kept(self) -> int:
        """Number of groups that passed the filter."""
        return self.decisions[FilterDecision.KEPT]

    def records(self) -> list[tuple[int, float, str]]:
        """Return (prompt index, mean outcome, decision) of every sampled group, in order.

        The mean outcome is NaN after a verifier error.
        """
        return [
            (group[0].prompt.index, mean_accuracy(group), decision.value)
            for group, decision in zip(self.groups, self._decision_of_group, strict=True)
        ]

    def sampled(self, num_in_batch: int) -> list[SampledGroup]:
        """Return every group with what became of it; the first `num_in_batch` that passed the filter are the batch."""
        sampled, num_passed = [], 0
        for group, decision in zip(self.groups, self._decision_of_group, strict=True):
            verdict, batch_index = decision.value, None
            if decision is FilterDecision.KEPT:
                is_in_batch = num_passed < num_in_batch
                batch_index = num_passed if is_in_batch else None
                verdict = verdict if is_in_batch else TRIMMED
                num_passed += 1
            sampled.append(SampledGroup(group, verdict, batch_index))
        return sampled

    @property
    def num_all_right(self) -> int:
        """Number of groups in which every response is correct."""
        return sum(mean_accuracy(group) == 1 for group in self.groups)

    @property
    def num_all_wrong(self) -> int:
        """Number of groups in which every response is wrong."""
        return sum(mean_accuracy(group) == 0 for group in self.groups)

    def explain(self) -> str:
        """Describe why groups were dropped and suggest a fix, for an error message."""
        dropped = [
            (count, decision)
            for decision, count in self.decisions.items()
            if decision is not FilterDecision.KEPT
        ]
        _, worst = max(dropped, default=(0, FilterDecision.KEPT), key=lambda pair: pair[0])
        counts = ", ".join(f"{decision.value} {self.decisions[decision]}" for decision in FilterDecision)
        return (
            f"{len(self.groups)} prompts sampled: {counts}; "
            f"{self.num_all_right / len(self.groups):.0%} all right, {self.num_all_wrong / len(self.groups):.0%} all "
            f"wrong; "
            f"{accuracy_histogram(self.groups)}. {_ADVICE[worst]}; or raise filter.max_prompts_factor."
        )

    def stats(self, batch_groups: Sequence[Group]) -> dict[str, float]:
        """Return the statistics of the collection of a batch.

        The keys are num_prompts_sampled, num_rollouts_sampled, num_groups_kept (in the batch),
        num_groups_dropped_<reason>, num_groups_trimmed (passed the filter, but left out to make the batch divisible),
        num_verifier_errors (responses), accuracy_sampled (of all responses), accuracy_batch, truncated_fraction and
        mean_response_tokens (of all sampled responses), policy_version (the oldest in the batch, or of all samples if
        it is empty) and accuracy_by_source/<source> (before the filter).

        Args:
            batch_groups: the groups of the batch.
        """
        sampled = [rollout for group in self.groups for rollout in group]
        batch = [rollout for group in batch_groups for rollout in group]
        dropped = {
            f"num_groups_{decision.value}": float(self.decisions[decision])
            for decision in FilterDecision
            if decision is not FilterDecision.KEPT
        }
        # The filter keeps only groups of medium accuracy, so an accuracy after it would say little about a source.
        by_source = accuracy_by_source(sampled)
        return {
            "num_prompts_sampled": float(len(self.groups)),
            "num_rollouts_sampled": float(len(sampled)),
            "num_groups_kept": float(len(batch_groups)),
            **dropped,
            "num_groups_trimmed": float(self.num_kept - len(batch_groups)),
            "num_verifier_errors": float(sum(math.isnan(rollout.outcome_reward) for rollout in sampled)),
            "accuracy_sampled": mean([rollout.outcome_reward for rollout in sampled]),
            "accuracy_batch": mean([rollout.outcome_reward for rollout in batch]),
            **rollout_stats(sampled),
            "policy_version": float(min(rollout.policy_version for rollout in batch or sampled)),
            **{f"accuracy_by_source/{source}": accuracy for source, accuracy in by_source.items()},
        }
