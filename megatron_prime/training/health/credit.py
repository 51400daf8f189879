"""Metrics of a batch that show process rewards which mislead; `algorithm.prm_quality` says what each is a sign of."""

import torch

from megatron_prime.algorithm.implicit_reward import log_ratio_BT, reward_positions
from megatron_prime.algorithm.prm_loss import prm_objective
from megatron_prime.algorithm.prm_quality import (
    best_is_wrong,
    length_correlation,
    lowest_on_last,
    share_of_magnitude,
)
from megatron_prime.algorithm.tensor_ops import by_row_blocks, zero_padding
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.training.health.format_tokens import FormatTokens
from megatron_prime.types import RolloutBatch


@torch.no_grad()
def credit_metrics(
    batch: RolloutBatch,
    prm_logprobs_BT: torch.Tensor,
    ref_logprobs_BT: torch.Tensor,
    rewards_BT: torch.Tensor,
    config: PRMConfig,
    format_tokens: FormatTokens,
) -> dict[str, float]:
    """Return the signs of process rewards that mislead, of the log-probs that the rewards are made of.

    They wait for the device once, and cost a few passes over [B, T], no forward pass.

    Args:
        batch: the training batch.
        prm_logprobs_BT: of the PRM, before or after its update as configured.
        ref_logprobs_BT: of the reference.
        rewards_BT: process rewards at `prm.granularity`.
        config: the [prm] section.
        format_tokens: knows the tokens that only format.
    """
    mask_BT = batch.response_mask_BT
    scored_BT = batch.scored_mask_BT(config.scored_tokens)
    q_BT = log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, scored_BT)
    scores_B = _scores_B(q_BT, scored_BT, config)
    formats = torch.from_numpy(format_tokens.mask([rollout.response_ids for rollout in batch.rollouts]))
    values: dict[str, torch.Tensor] = {
        "length_correlation": length_correlation(scores_B, scored_BT.sum(dim=1), batch.outcome_rewards_B),
    }
    if config.is_trained:
        # A PRM gives a token at most the log-ratio -log ref, where it is sure of it.
        limits_BT = -zero_padding(ref_logprobs_BT, scored_BT)
        values["score_limit"] = _scores_B(limits_BT, scored_BT, config).mean()
    values["best_is_wrong_fraction"], values["best_is_wrong_chance"] = best_is_wrong(
        scores_B, batch.outcome_rewards_B, batch.group_ids_B
    )
    values["format_share"], values["format_token_fraction"] = share_of_magnitude(
        q_BT, formats.to(mask_BT.device), scored_BT
    )
    if config.granularity != "whole":  # One reward of a response is its lowest and its last.
        positions_BT = reward_positions(
            mask_BT,
            config.granularity,
            batch.unit_ids_BT(config.granularity),
            batch.policy_mask_BT,
            scored_tokens=config.scored_tokens,
        )
        values["lowest_on_last_fraction"], values["lowest_on_last_chance"] = lowest_on_last(
            rewards_BT, positions_BT
        )
    numbers = torch.stack([value.double() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _scores_B(q_BT: torch.Tensor, scored_BT: torch.Tensor, config: PRMConfig) -> torch.Tensor:  # noqa: N802
    """Return the value of whole responses under the PRM's objective, without a class prior, float64 [B]."""
    objective = prm_objective(config)

    def of_rows(q_bT: torch.Tensor, scored_bT: torch.Tensor) -> torch.Tensor:
        q_bT = q_bT.double()
        return objective.prefix_logits_BL(q_bT, scored_bT, q_bT.new_zeros(q_bT.shape[0]))[:, -1].clone()

    return by_row_blocks(of_rows, q_BT, scored_BT)
