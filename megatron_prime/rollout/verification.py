"""Verification of rollouts, distributed over the ranks."""

from collections.abc import Callable, Sequence
from typing import Protocol

from megatron_prime.rollout.ranks import Ranks
from megatron_prime.types import Decoder, Rollout


class Outcome(Protocol):
    """The result of verifying one response."""

    @property
    def reward(self) -> float:
        """Reward in [0, 1]; NaN if the verifier failed or timed out."""
        ...


Verify = Callable[[Sequence[tuple[str, str, str, str]]], Sequence[Outcome]]
"""Maps (response text, ground truth, data source, ability) of each response to its outcome, in order."""


class RolloutVerifier:
    """Verifies rollouts; each rank verifies a share of them."""

    def __init__(self, verify: Verify, tokenizer: Decoder, ranks: Ranks | None = None) -> None:
        self._verify = verify
        self._tokenizer = tokenizer
        self._ranks = ranks or Ranks()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts with their outcomes, on every rank. Collective; all ranks pass equal rollouts.

        Raises:
            RuntimeError: the verifier returned a wrong number of outcomes, or a reward outside [0, 1].
        """
        # The shares are strided, because neighbouring rollouts share a prompt, and all responses to a hard prompt may
        # be slow to verify.
        num_ranks = self._ranks.world_size
        order = [row for first in range(num_ranks) for row in range(first, len(rollouts), num_ranks)]
        share = [rollouts[row] for row in self._ranks.share(order)]
        outcomes = self._verify([self._response(rollout) for rollout in share])
        if len(outcomes) != len(share):
            raise RuntimeError(f"the verifier returned {len(outcomes)} outcomes for {len(share)} responses")
        rewards = self._ranks.gather_all([float(outcome.reward) for outcome in outcomes])
        outside = [reward for reward in rewards if reward < 0 or reward > 1]
        if outside:
            raise RuntimeError(f"the verifier returned rewards outside [0, 1]: {outside[:5]}")
        # The gathered rewards are in the strided order; this maps them back to the rows.
        reward_of_row = dict(zip(order, rewards, strict=True))
        return [rollout.with_outcome(reward_of_row[row]) for row, rollout in enumerate(rollouts)]

    def _response(self, rollout: Rollout) -> tuple[str, str, str, str]:
        text = self._tokenizer.decode(list(rollout.response_ids), skip_special_tokens=True)
        return text, rollout.prompt.answer, rollout.prompt.source, rollout.prompt.ability
