"""The gap between the trainer's log-probs and those that the rollout engine reported, and an alarm on it.

Both are of the same tokens under what should be the same weights. Any difference silently makes the update off-policy.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mismatch:
    """|old - rollout| log-prob over the response tokens of a batch, in nats."""

    mean: float
    max: float

    @staticmethod
    def of(
        old_logprobs_BT: torch.Tensor, rollout_logprobs_BT: torch.Tensor, response_mask_BT: torch.Tensor
    ) -> "Mismatch":
        """Return the mismatch of a batch with at least one response token; values that are not finite propagate."""
        gap = (old_logprobs_BT - rollout_logprobs_BT)[response_mask_BT].abs()
        return Mismatch(gap.mean().item(), gap.max().item())


class MismatchAlarm:
    """Warns when the mean exceeds a threshold or a log-prob is not finite, once per episode."""

    def __init__(self, threshold: float, tis_cap: float | None) -> None:
        """Take `threshold`, which is rollout.logprob_alarm in nats, and `tis_cap`, which is policy.tis_cap."""
        self._threshold = threshold
        self._tis_cap = tis_cap
        self.is_on = False
        """True if the last look was alarming."""

    def look(self, mismatch: Mismatch, step: int) -> str | None:
        """Add a step's mismatch; return a warning if an episode begins with it."""
        was_on = self.is_on
        self.is_on = not mismatch.mean <= self._threshold or not math.isfinite(mismatch.max)
        if was_on or not self.is_on:
            return None
        advice = (
            "policy.tis_cap = 2.0 bounds what it does to the update, "
            if self._tis_cap is None
            else "policy.tis_cap corrects for it as far as it goes, "
        )
        return (
            f"step {step}: training and rollout log-probs differ by {mismatch.mean:.3g} nats on average and "
            f"{mismatch.max:.3g} at most (alarm at rollout.logprob_alarm = {self._threshold:g}). A jump from one step "
            "to the next is a stale or broken weight sync: go back to the checkpoint before it. A gap "
            "from the first step on, or one that grows, is numerics: serve the dtype that trains (platform.dtype); "
            f"{advice}and docs/placement.md has the rest"
        )
