"""What happened while a batch was collected."""

import math
from collections import Counter
from collections.abc import Sequence

from megatron_prime.rollout.group_filter import Group, Verdict, accuracy_histogram, mean_accuracy
from megatron_prime.types import FinishReason, Rollout

_MENDING = {
    Verdict.TOO_HARD: "Most are too hard: warm the policy up by SFT, use easier prompts, raise "
    "rollout.group_size or lower filter.accuracy_min",
    Verdict.TOO_EASY: "Most are too easy: use harder prompts, raise rollout.group_size or "
    "filter.accuracy_max",
    Verdict.TRUNCATED: "Most are truncated: raise rollout.max_response_tokens or "
    "filter.max_truncated_fraction",
    Verdict.VERIFIER_ERROR: "Most met verifier errors: check reward.verifier, reward.timeout_s and the "
    "answers in the data",
    Verdict.ABORTED: "Most were aborted by the engine: see its log",
    Verdict.KEPT: "Most were kept",
}


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN without any."""
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def rollout_stats(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Length and truncation of responses; NaN of none."""
    return {
        "truncated_fraction": mean(
            [float(rollout.finish_reason is FinishReason.LENGTH) for rollout in rollouts]
        ),
        "mean_response_tokens": mean([float(len(rollout.response_ids)) for rollout in rollouts]),
    }


def accuracy_by_source(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean outcome of each named source, verifier errors apart."""
    sources = sorted({rollout.prompt.source for rollout in rollouts} - {""})
    return {
        source: mean([rollout.outcome_reward for rollout in rollouts if rollout.prompt.source == source])
        for source in sources
    }


class CollectionTally:
    """Counts over the rounds of one step."""

    def __init__(self) -> None:
        self.num_rounds = 0
        self.groups: list[Group] = []
        """Every group sampled, kept or not."""
        self.verdicts: Counter[Verdict] = Counter()
        self._verdict_of_group: list[Verdict] = []

    def add_round(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Count one sampling round."""
        self.num_rounds += 1
        self.groups.extend(groups)
        self._verdict_of_group.extend(verdicts)
        self.verdicts.update(verdicts)

    @property
    def keep_rate(self) -> float:
        """Smoothed share of groups that pass the filter, in (0, 1]; 1 before the first round."""
        return (self.verdicts[Verdict.KEPT] + 1) / (len(self.groups) + 1)

    @property
    def num_kept(self) -> int:
        """Groups that passed the filter, surplus included."""
        return self.verdicts[Verdict.KEPT]

    def records(self) -> list[tuple[int, float, str]]:
        """Prompt index, mean outcome (NaN after a verifier error) and verdict of every group sampled, in order."""
        return [
            (group[0].prompt.index, mean_accuracy(group), verdict.value)
            for group, verdict in zip(self.groups, self._verdict_of_group, strict=True)
        ]

    @property
    def num_all_right(self) -> int:
        """Groups whose every response was right."""
        return sum(mean_accuracy(group) == 1 for group in self.groups)

    @property
    def num_all_wrong(self) -> int:
        """Groups whose every response was wrong."""
        return sum(mean_accuracy(group) == 0 for group in self.groups)

    def explain(self) -> str:
        """Why groups were dropped and how to mend it, for an error message."""
        dropped = [
            (count, verdict) for verdict, count in self.verdicts.items() if verdict is not Verdict.KEPT
        ]
        _, worst = max(dropped, default=(0, Verdict.KEPT), key=lambda pair: pair[0])
        counts = ", ".join(f"{verdict.value} {self.verdicts[verdict]}" for verdict in Verdict)
        return (
            f"{len(self.groups)} prompts sampled in {self.num_rounds} rounds: {counts}; "
            f"{self.num_all_right / len(self.groups):.0%} all right, {self.num_all_wrong / len(self.groups):.0%} all "
            f"wrong; "
            f"{accuracy_histogram(self.groups)}. {_MENDING[worst]}; or raise filter.max_rounds."
        )

    def stats(self, batch_groups: Sequence[Group], num_trimmed: int) -> dict[str, float]:
        """The statistics of a batch of batch_groups; num_trimmed groups were left out for divisibility.

        Keys: num_rounds, num_prompts_sampled, num_rollouts_sampled, num_groups_kept (in the batch),
        num_groups_dropped_<reason>, num_groups_surplus (passed the filter, but the batch was full),
        num_groups_trimmed, num_verifier_errors (responses), accuracy_before_filter, accuracy (of the batch),
        truncated_fraction and mean_response_tokens (of all sampled), policy_version,
        accuracy_by_source/<source> (before the filter).
        """
        sampled = [rollout for group in self.groups for rollout in group]
        batch = [rollout for group in batch_groups for rollout in group]
        dropped = {
            f"num_groups_{verdict.value}": float(self.verdicts[verdict])
            for verdict in Verdict
            if verdict is not Verdict.KEPT
        }
        by_source = accuracy_by_source(sampled)
        num_surplus = self.verdicts[Verdict.KEPT] - len(batch_groups) - num_trimmed
        return {
            "num_rounds": float(self.num_rounds),
            "num_prompts_sampled": float(len(self.groups)),
            "num_rollouts_sampled": float(len(sampled)),
            "num_groups_kept": float(len(batch_groups)),
            **dropped,
            "num_groups_surplus": float(num_surplus),
            "num_groups_trimmed": float(num_trimmed),
            "num_verifier_errors": float(sum(math.isnan(rollout.outcome_reward) for rollout in sampled)),
            "accuracy_before_filter": mean([rollout.outcome_reward for rollout in sampled]),
            "accuracy": mean([rollout.outcome_reward for rollout in batch]),
            **rollout_stats(sampled),
            "policy_version": float(min(rollout.policy_version for rollout in batch)),
            **{f"accuracy_by_source/{source}": accuracy for source, accuracy in by_source.items()},
        }
