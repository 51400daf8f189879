"""The groups that a step has sampled, each with what became of it, and the choice of some to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_prime.rollout.group_filter import Group

KEPT = "kept"
TRIMMED = "trimmed"
"""Passed the filter, but was left out to make the batch divisible into minibatches."""


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """A group of a step, in the batch or not."""

    rollouts: Group
    """With their outcomes."""
    verdict: str | None
    """KEPT if the group is in the batch, TRIMMED, or the decision of the filter that dropped it; None where
    nothing is filtered."""
    batch_index: int | None = None
    """Position of the group in the batch; None if it is not in it."""


GroupObserver = Callable[[int, Sequence[SampledGroup]], None]
"""Receives the index of a step and all groups that were sampled for it, kept or dropped, in the order of sampling."""


def chosen_groups(groups: Sequence[SampledGroup], most: int) -> list[SampledGroup]:
    """Return at most `most` groups, in order: three quarters from the batch and the others from the rest.

    Where one kind has too few groups, the other fills up. The choice uses no random numbers, and depends on the number
    of groups of each kind alone: it takes them at equal distances.
    """
    in_batch = [index for index, group in enumerate(groups) if group.batch_index is not None]
    others = [index for index, group in enumerate(groups) if group.batch_index is None]
    num_others = min(len(others), max(most // 4, most - len(in_batch)))
    num_in_batch = min(len(in_batch), most - num_others)
    indices = _spread(in_batch, num_in_batch) + _spread(others, num_others)
    return [groups[index] for index in sorted(indices)]


def _spread(items: Sequence[int], count: int) -> list[int]:
    return [items[number * len(items) // count] for number in range(count)]
