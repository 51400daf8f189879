"""Process rewards of a batch: those that are recorded, and those that its advantages are made of."""

from dataclasses import dataclass

import torch

from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.implicit_reward import log_ratio_BT, process_rewards_BT
from megatron_prime.algorithm.prm_loss import prm_objective
from megatron_prime.algorithm.process_credit import CreditedRewards, credited_rewards
from megatron_prime.config.run import PrimeConfig
from megatron_prime.types import RolloutBatch


@dataclass(frozen=True)
class ProcessRewards:
    """Process rewards of a batch."""

    prm_logprobs_BT: torch.Tensor
    """Log-probs that the rewards are made of."""
    rewards_BT: torch.Tensor
    """The reward of each token, step or turn itself, whatever the credit form; of a critic the change of its value."""
    credited: CreditedRewards
    """The rewards that each of them is credited with."""

    @staticmethod
    def of(
        batch: RolloutBatch,
        prm_logprobs_BT: torch.Tensor,
        ref_logprobs_BT: torch.Tensor,
        config: PrimeConfig,
    ) -> "ProcessRewards":
        """Compute the rewards of a whole batch (Eq. 3) as [prm] and `advantage.process_credit` say."""
        unit_ids_BT = batch.unit_ids_BT(config.prm.granularity)
        mask_BT, policy_BT = batch.response_mask_BT, batch.policy_mask_BT
        inputs = (prm_logprobs_BT, ref_logprobs_BT, mask_BT, config.prm)
        credit = config.advantage.process_credit
        values_BL = (
            _prefix_logits_BL(batch, prm_logprobs_BT, ref_logprobs_BT, config) if credit == "td" else None
        )
        credited = credited_rewards(*inputs, credit, unit_ids_BT, policy_BT, values_BL)
        own_BT = (
            credited.rewards_BT
            if credit == "own" or config.prm.is_critic
            else process_rewards_BT(*inputs, unit_ids_BT, policy_BT)
        )
        return ProcessRewards(prm_logprobs_BT, own_BT, credited)

    def metrics(self, scored_mask_BT: torch.Tensor) -> dict[str, float]:
        """Return the mean and the largest magnitude over the scored tokens; 0 without any, as where nobody replied."""
        rewards = self.rewards_BT[scored_mask_BT]
        if not rewards.numel():
            return {"process_reward_mean": 0.0, "process_reward_max_abs": 0.0}
        return {
            "process_reward_mean": rewards.mean().item(),
            "process_reward_max_abs": rewards.abs().max().item(),
        }


def _prefix_logits_BL(  # noqa: N802
    batch: RolloutBatch, prm_logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor, config: PrimeConfig
) -> torch.Tensor:
    """Return what the PRM's objective says of every prefix of the batch."""
    scored_BT = batch.scored_mask_BT(config.prm.scored_tokens)
    priors_B = prior_logits_B(batch.outcome_rewards_B, batch.group_ids_B)
    q_BT = log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, scored_BT)
    return prm_objective(config.prm).prefix_logits_BL(q_BT, scored_BT, priors_B)
