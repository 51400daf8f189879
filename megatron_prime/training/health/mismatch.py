"""The gap between the trainer's log-probs and those that the rollout engine reported.

Both are of the same tokens under what should be the same weights. Any difference silently makes the update off-policy.
`alarms.GapAlarm` watches it.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mismatch:
    """|old - rollout| log-prob over the tokens of a batch that the policy wrote, in nats."""

    mean: float
    max: float

    @staticmethod
    def of(
        old_logprobs_BT: torch.Tensor, rollout_logprobs_BT: torch.Tensor, policy_mask_BT: torch.Tensor
    ) -> "Mismatch":
        """Return the mismatch of a batch with at least one such token; values that are not finite propagate."""
        gap = (old_logprobs_BT - rollout_logprobs_BT)[policy_mask_BT].abs()
        return Mismatch(*torch.stack([gap.mean(), gap.max()]).tolist())
