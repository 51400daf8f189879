"""The groups of one step in the order of their prompts, whatever the order in which they finish.

A step uses the groups up to the one that fills its batch, or up to the largest number of prompts: the prefix. A group
behind it changes nothing, whether it has finished or not, so that neither speed nor chance selects what is trained on,
and no short response is favoured over a long one.
"""

import math

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.group_filter import FilterDecision, Group

PRIOR_WEIGHT = 0.25
"""Weight of the keep rate of earlier steps beside that of this step, in batches."""


class Prefix:
    """Decides which groups a step needs, and how many prompts to sample ahead.

    Args:
        num_needed: groups of a full batch.
        max_prompts: most prompts of the step.
        keep_rate: fraction of groups that passed the filter recently, in (0, 1]; None if it is unknown.
    """

    def __init__(self, num_needed: int, max_prompts: int, keep_rate: float | None) -> None:
        self.num_submitted = 0
        """Prompts that were submitted so far; they are numbered from 0."""
        self.num_needed = num_needed
        """Groups of a full batch."""
        self.max_prompts = max_prompts
        """Most prompts of the step."""
        self._keep_rate = 1.0 if keep_rate is None else keep_rate
        self._decided: dict[int, tuple[Group, FilterDecision]] = {}
        self._num_kept = 0
        """Groups that passed the filter, in the prefix or behind it."""
        self._length = 0
        """Groups of the prefix that are decided."""
        self._num_kept_inside = 0

    @property
    def is_complete(self) -> bool:
        """Whether the step needs no further group."""
        return self._num_kept_inside == self.num_needed or self._length == self.max_prompts

    @property
    def num_undecided(self) -> int:
        """Number of groups that were submitted and are not decided yet."""
        return self.num_submitted - len(self._decided)

    def num_wanted(self) -> int:
        """Return how many further prompts are needed to fill the batch if the filter keeps groups at the same rate."""
        num_missing = self.num_needed - self._num_kept
        if num_missing <= 0:
            return 0
        prior = max(1.0, PRIOR_WEIGHT * self.num_needed)
        rate = (self._num_kept + prior * self._keep_rate) / (len(self._decided) + prior)
        wanted = math.ceil(num_missing / rate) - self.num_undecided
        return max(0, min(wanted, self.max_prompts - self.num_submitted))

    def decide(self, number: int, group: Group, decision: FilterDecision) -> None:
        """Add a group that has been verified, and the filter's decision on it."""
        assert 0 <= number < self.num_submitted and number not in self._decided
        self._decided[number] = group, decision
        self._num_kept += decision is FilterDecision.KEPT
        while not self.is_complete and self._length in self._decided:
            self._num_kept_inside += self._decided[self._length][1] is FilterDecision.KEPT
            self._length += 1

    def groups(self) -> list[tuple[Group, FilterDecision]]:
        """Return the groups of the prefix in order, with the decisions on them."""
        return [self._decided[number] for number in range(self._length)]


def max_prompts(config: FilterConfig, prompts_per_step: int) -> int:
    """Return the most prompts that a step may sample."""
    return math.floor(config.max_prompts_factor * prompts_per_step)
