"""The algorithm's losses as row losses: what the packed backward pass calls on each microbatch.

Shape legend: B rows of the batch, b rows of a microbatch, T response tokens.
"""

from dataclasses import dataclass

import torch

from megatron_prime.algorithm.implicit_reward import sequence_scores_B
from megatron_prime.algorithm.policy_loss import (
    Aggregation,
    PolicyLossSettings,
    aggregation_weights_BT,
    clip_policy_loss,
)
from megatron_prime.algorithm.prm_loss import PRMLossKind, prm_loss


@dataclass(frozen=True)
class PolicyRowLoss:
    """PPO clip over a minibatch."""

    settings: PolicyLossSettings
    weights_BT: torch.Tensor
    """Of the minibatch's tokens; 0 elsewhere."""
    old_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    rollout_logprobs_BT: torch.Tensor
    ref_logprobs_BT: torch.Tensor | None = None

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See RowLoss."""
        return clip_policy_loss(
            logprobs_bT,
            self.old_logprobs_BT[rows_b],
            self.advantages_BT[rows_b],
            self.weights_BT[rows_b],
            self.settings,
            entropy_BT=entropy_bT,
            ref_logprobs_BT=None if self.ref_logprobs_BT is None else self.ref_logprobs_BT[rows_b],
            rollout_logprobs_BT=self.rollout_logprobs_BT[rows_b],
        )


@dataclass(frozen=True)
class PRMRowLoss:
    """The PRM's loss on outcome labels over a minibatch of `num_rows` trained responses: their mean."""

    kind: PRMLossKind
    beta: float
    num_rows: int
    ref_logprobs_BT: torch.Tensor
    response_mask_BT: torch.Tensor
    outcome_rewards_B: torch.Tensor
    other_scores_B: torch.Tensor | None = None
    pair_weights_B: torch.Tensor | None = None
    is_trained_B: torch.Tensor | None = None
    """bool; rows that are False have no loss, and num_rows does not count them. None trains all."""

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See RowLoss."""
        scores_b = sequence_scores_B(
            logprobs_bT, self.ref_logprobs_BT[rows_b], self.response_mask_BT[rows_b], self.beta
        )
        loss = prm_loss(
            scores_b,
            self.outcome_rewards_B[rows_b],
            self.kind,
            self._weights(scores_b, rows_b),
            None if self.other_scores_B is None else self.other_scores_B[rows_b],
            None if self.pair_weights_B is None else self.pair_weights_B[rows_b],
        )
        return loss, {"loss": loss.detach()}

    def _weights(self, scores_b: torch.Tensor, rows_b: torch.Tensor) -> torch.Tensor:
        weights_b = torch.full_like(scores_b, 1 / self.num_rows)
        return weights_b if self.is_trained_B is None else weights_b * self.is_trained_B[rows_b]


@dataclass(frozen=True)
class SFTRowLoss:
    """Negative log-likelihood, averaged over the tokens of the batch."""

    weights_BT: torch.Tensor

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See RowLoss."""
        loss = -(self.weights_BT[rows_b] * logprobs_bT).sum()
        return loss, {"loss": loss.detach()}


def minibatch_weights_BT(  # noqa: N802
    response_mask_BT: torch.Tensor, rows: list[int], aggregation: Aggregation
) -> torch.Tensor:
    """Token weights of one minibatch, in the shape of the whole batch and 0 outside it."""
    weights_BT = torch.zeros(response_mask_BT.shape, device=response_mask_BT.device)
    weights_BT[rows] = aggregation_weights_BT(response_mask_BT[rows], aggregation)
    return weights_BT
