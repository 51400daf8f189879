"""Metrics of the process rewards in responses of several turns."""

import torch

from megatron_prime.algorithm.implicit_reward import process_rewards_BT, reward_positions
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.types import RolloutBatch


def turn_metrics(
    batch: RolloutBatch, prm_logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor, config: PRMConfig
) -> dict[str, float]:
    """Return statistics over the turns of a batch, at any granularity of its rewards; empty without an environment.

    turn_reward_mean, turn_reward_std: of the sums of the process rewards of each turn, with the reply to it.
    reply_share: the replies' share of the magnitudes of the token rewards; 0 where all rewards are 0.
    """
    if batch.turn_ids_BT is None:
        return {}
    mask_BT, policy_BT = batch.response_mask_BT, batch.policy_mask_BT
    by_turn, by_token = (
        process_rewards_BT(
            prm_logprobs_BT,
            ref_logprobs_BT,
            mask_BT,
            config.model_copy(update={"granularity": granularity}),
            batch.turn_ids_BT,
            policy_BT,
        )
        for granularity in ("turn", "token")
    )
    turns = by_turn[reward_positions(mask_BT, "turn", batch.turn_ids_BT, policy_BT)].double()
    sizes_BT = by_token.abs().double()
    total = sizes_BT.sum().item()
    on_replies = sizes_BT[mask_BT & ~policy_BT].sum().item()
    return {
        "turn_reward_mean": turns.mean().item(),
        "turn_reward_std": turns.std(unbiased=False).item(),
        "reply_share": on_replies / total if total else 0.0,
    }
