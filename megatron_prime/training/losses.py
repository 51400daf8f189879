"""The algorithm's losses as row losses, which the packed backward pass calls on each microbatch.

Shape legend: B rows of the batch, b rows of a microbatch, T response tokens.
"""

from dataclasses import dataclass

import torch

from megatron_prime.algorithm.checks import check_outcomes
from megatron_prime.algorithm.policy_loss import aggregation_weights_BT, policy_loss
from megatron_prime.algorithm.prm_loss import prm_loss
from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows
from megatron_prime.config.tables.policy import Aggregation, PolicyConfig
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True)
class PolicyRowLoss:
    """The policy's loss over a minibatch."""

    config: PolicyConfig
    weights_BT: torch.Tensor
    """Weights of the minibatch's tokens; 0 elsewhere."""
    old_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    rollout_logprobs_BT: torch.Tensor
    ref_logprobs_BT: torch.Tensor | None = None

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See RowLoss."""
        return policy_loss(
            logprobs_bT,
            self.old_logprobs_BT[rows_b],
            self.advantages_BT[rows_b],
            self.weights_BT[rows_b],
            self.config,
            entropy_BT=entropy_bT,
            ref_logprobs_BT=None if self.ref_logprobs_BT is None else self.ref_logprobs_BT[rows_b],
            rollout_logprobs_BT=self.rollout_logprobs_BT[rows_b],
            total_weight=self.weights_BT.sum() if self.config.aggregation == "constant" else 1.0,
        )


@dataclass(frozen=True)
class PRMRowLoss:
    """The PRM's loss on outcome labels, averaged over the `num_rows` trained responses of a minibatch."""

    config: PRMConfig
    num_rows: int
    ref_logprobs_BT: torch.Tensor
    scored_mask_BT: torch.Tensor
    """The tokens that the PRM's score sums over."""
    outcome_rewards_B: torch.Tensor
    unit_ids_BT: torch.Tensor | None = None
    """The step or turn of each token, for objectives that require units."""
    targets: RowTargets | None = None
    """Targets of the whole batch, for objectives that have some."""
    is_trained_B: torch.Tensor | None = None
    """bool; rows that are False have no loss, and num_rows does not count them. None trains all."""

    def __post_init__(self) -> None:
        # Once per minibatch instead of once per microbatch. Raises ValueError.
        check_outcomes(self.outcome_rewards_B)

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See RowLoss."""
        rows = ScoredRows.of(
            logprobs_bT,
            self.ref_logprobs_BT[rows_b],
            self.scored_mask_BT[rows_b],
            self.config.beta,
            None if self.unit_ids_BT is None else self.unit_ids_BT[rows_b],
        )
        loss = prm_loss(
            rows,
            self.outcome_rewards_B[rows_b],
            self._weights(rows, rows_b),
            self.config,
            None if self.targets is None else self.targets.rows(rows_b),
            are_labels_checked=True,
        )
        return loss, {"loss": loss.detach()}

    def _weights(self, rows: ScoredRows, rows_b: torch.Tensor) -> torch.Tensor:
        weights_b = rows.log_ratio_BT.new_full((rows.num_rows,), 1 / self.num_rows)
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
    trained_mask_BT: torch.Tensor,
    rows: list[int],
    aggregation: Aggregation,
    max_response_tokens: int | None = None,
) -> torch.Tensor:
    """Return the token weights of one minibatch in the shape of the whole batch, 0 outside the minibatch and mask."""
    weights_BT = torch.zeros(trained_mask_BT.shape, device=trained_mask_BT.device)
    weights_BT[rows] = aggregation_weights_BT(trained_mask_BT[rows], aggregation, max_response_tokens)
    return weights_BT
