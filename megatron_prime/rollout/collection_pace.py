"""What later steps need to know of earlier ones: how many groups pass the filter, and for how long too few did."""

from dataclasses import dataclass

from megatron_prime.rollout.collection_stats import CollectionTally

MEMORY = 0.5
"""Weight of the steps before in the running share of groups kept."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Plain numbers, so that a checkpoint holds them and a resumed run samples the same."""

    keep_rate: float | None = None
    """Running share of groups that pass the filter, in (0, 1]; None before the first step."""
    num_short_steps: int = 0
    """Short steps in a row, the last one included."""
    num_sampled: int = 0
    """Groups sampled in those."""
    num_all_right: int = 0
    num_all_wrong: int = 0

    def after(self, tally: CollectionTally, is_short: bool) -> "Pace":
        """The pace once a step is collected."""
        rate = tally.keep_rate
        if self.keep_rate is not None:
            rate = MEMORY * self.keep_rate + (1 - MEMORY) * rate
        if not is_short:
            return Pace(keep_rate=rate)
        return Pace(
            rate,
            self.num_short_steps + 1,
            self.num_sampled + len(tally.groups),
            self.num_all_right + tally.num_all_right,
            self.num_all_wrong + tally.num_all_wrong,
        )

    def explain(self) -> str:
        """The short steps in numbers, and what to change."""
        right, wrong = self.num_all_right / self.num_sampled, self.num_all_wrong / self.num_sampled
        if max(right, wrong) < 0.5:
            mending = "Few are all right or all wrong: see the reasons below"
        elif right > wrong:
            mending = "The data is too easy for this policy: use harder prompts, or stop here"
        else:
            mending = "The data is too hard for this policy: use easier prompts, or warm it up by SFT"
        shares = f"{right:.0%} were all right and {wrong:.0%} all wrong"
        return f"Of {self.num_sampled} prompts sampled, {shares}. {mending}."
