"""The collector's state that later steps depend on: the keep rate, and how many steps in a row were short."""

from dataclasses import dataclass

from megatron_prime.rollout.collection_stats import CollectionTally

DECAY = 0.5
"""Weight of the previous steps in the exponential moving average of the keep rate."""


@dataclass(frozen=True, slots=True)
class CollectorState:
    """State of a collector after a step, as plain numbers that a checkpoint can store as JSON."""

    keep_rate: float | None = None
    """Moving average of the fraction of groups that pass the filter, in (0, 1]; None before the first step."""
    num_short_steps: int = 0
    """Number of short steps in a row, up to and including the last step."""
    num_sampled: int = 0
    """Groups sampled in those steps."""
    num_all_right: int = 0
    """Groups of those steps in which every response was correct."""
    num_all_wrong: int = 0
    """Groups of those steps in which every response was wrong."""

    def update(self, tally: CollectionTally, is_short: bool) -> "CollectorState":
        """Return the state after a step with the given counts; `is_short` if it kept too few groups."""
        rate = tally.keep_rate
        if self.keep_rate is not None:
            rate = DECAY * self.keep_rate + (1 - DECAY) * rate
        if not is_short:
            return CollectorState(keep_rate=rate)
        return CollectorState(
            rate,
            self.num_short_steps + 1,
            self.num_sampled + len(tally.groups),
            self.num_all_right + tally.num_all_right,
            self.num_all_wrong + tally.num_all_wrong,
        )

    def explain(self) -> str:
        """Describe the short steps in numbers and suggest what to change."""
        right, wrong = self.num_all_right / self.num_sampled, self.num_all_wrong / self.num_sampled
        if max(right, wrong) < 0.5:
            advice = "Few are all right or all wrong: see the reasons below"
        elif right > wrong:
            advice = "The data is too easy for this policy: use harder prompts, or stop here"
        else:
            advice = "The data is too hard for this policy: use easier prompts, or warm it up by SFT"
        fractions = f"{right:.0%} were all right and {wrong:.0%} all wrong"
        return f"Of {self.num_sampled} prompts sampled, {fractions}. {advice}."
