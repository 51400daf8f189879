"""From outcome and process rewards to advantages (Eq. 4, 5, 7, 8 and Sec. 5.4).

Every function sees the GLOBAL batch: `batch_max` and whitening over one rank's share would make the result
depend on the number of ranks, as it does in the released code.

Length bias. Cross-entropy teaches the PRM's score an offset c, the logit of the class prior, shared by all
responses. Spread evenly it adds c/|y| to each token reward, and the return of the first token moves by
    sequence_spread   0                                (cancels, at every token)
    token_mean        c - c * |y_i| * mean_{j != i} 1/|y_j|
    released          the same (both agree on the first token)
    sequence_sum      c - c * |y_i|
so only a baseline taken once per response cancels it. token_mean and released cancel it when all responses
are equally long, sequence_sum never does: it subtracts the others' whole sums once per token.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import (
    check_choice,
    check_outcomes,
    check_response_mask,
    check_rows,
    check_shapes,
    check_unit_interval,
)
from megatron_prime.algorithm.groups import group_mean, group_sizes, group_std, leave_one_out_mean
from megatron_prime.algorithm.tensor_ops import (
    as_float,
    discounted_return_BT,
    last_token_onehot,
    masked_mean,
    masked_sum,
    masked_whiten_BT,
    zero_padding,
)

Estimator = Literal["rloo", "grpo", "reinforce", "prm_value"]
ProcessBaseline = Literal["sequence_sum", "sequence_spread", "token_mean", "released"]
ProcessNormalization = Literal["none", "batch_max"]
Whitening = Literal["none", "joint", "per_source"]

BATCH_MAX_EPS = 1e-6
# A group whose spread is below this share of its mean size is constant up to rounding; its contrast is noise.
CONSTANT_GROUP_RTOL = 1e-6


@dataclass(frozen=True)
class AdvantageSettings:
    """Which form of the advantage to compute.

    The defaults are the released code's; `PAPER_SETTINGS` are the text's.

    Attributes:
        estimator: rloo is Eq. 4 + 5; grpo Eq. 7; reinforce Eq. 8; prm_value is Sec. 5.4, A_t = r_o -
            v_phi(y_<t) with v_phi(y_<t) = sum_{s<t} r_s, the PRM as value model.
        process_baseline: read by rloo alone. With r(y) a response's sum and m its mean over the tokens that
            carry rewards,
            sequence_sum: r_t - mean_{j != i} r(y_j), Eq. 5 as printed;
            token_mean: r_t - mean_{j != i} m_j, Eq. 5 as its text says;
            released: r_t * G/(G-1) - sum_j m_j/(G-1), which is token_mean + (r_t - m_i)/(G-1);
            sequence_spread: r_t - mean_{j != i} r(y_j)/|y_i|, the whole baseline once per response (not in
                the paper).
        process_normalization: batch_max divides the process rewards by 1e-6 + the largest absolute
            undiscounted return in the batch. Where PRM and reference agree up to rounding noise it scales
            that noise to +-1.
        whitening: joint whitens the weighted sum, per_source each return before it is weighted.
        gamma_outcome: discount of the outcome; 1 in the paper (Eq. 5 does not discount it).
        gamma_process: discount of the process rewards; must be 1 for prm_value, whose value is a plain sum.
        outcome_coef: weight of the outcome's part.
        process_coef: weight of the process part; 0 leaves the outcome alone.
    """

    estimator: Estimator = "rloo"
    process_baseline: ProcessBaseline = "released"
    process_normalization: ProcessNormalization = "batch_max"
    whitening: Whitening = "joint"
    gamma_outcome: float = 1.0
    gamma_process: float = 1.0
    outcome_coef: float = 1.0
    process_coef: float = 1.0

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, get_args(Estimator))
        check_choice("process_baseline", self.process_baseline, get_args(ProcessBaseline))
        check_choice("process_normalization", self.process_normalization, get_args(ProcessNormalization))
        check_choice("whitening", self.whitening, get_args(Whitening))
        check_unit_interval(gamma_outcome=self.gamma_outcome, gamma_process=self.gamma_process)
        if self.outcome_coef < 0 or self.process_coef < 0:
            raise ValueError(
                f"outcome_coef {self.outcome_coef} and process_coef {self.process_coef} must not be negative"
            )
        if self.estimator == "prm_value" and self.gamma_process != 1:
            raise ValueError(
                f"gamma_process is {self.gamma_process}; prm_value needs 1, its value is a plain sum"
            )


PAPER_SETTINGS = AdvantageSettings(
    process_baseline="token_mean", process_normalization="none", whitening="none"
)
RELEASED_SETTINGS = AdvantageSettings()


@torch.no_grad()
def prime_advantages(
    outcome_rewards_B: Tensor,
    process_rewards_BT: Tensor | None,
    response_mask_BT: Tensor,
    group_ids_B: Tensor,
    settings: AdvantageSettings,
    process_positions_BT: Tensor | None = None,
    outcome_penalties_B: Tensor | None = None,
) -> Tensor:
    """Return the advantages of the global batch, [B, T], zero in the padding, detached.

    Without process rewards, or with process_coef 0, this is leave-one-out on the outcome exactly (or the
    estimator's outcome part), constant along a response while gamma_outcome is 1.

    Args:
        outcome_rewards_B: in [0, 1], no NaN.
        process_rewards_BT: from `implicit_reward.process_rewards_BT`, or None.
        response_mask_BT: bool or 0/1, right padded.
        group_ids_B: int; equal for responses to one prompt, in any order, groups of any size >= 2.
        settings: the form to compute.
        process_positions_BT: tokens that carry process rewards, from `implicit_reward.reward_positions`;
            baselines average over and apply to them alone. None: all response tokens, as in the released
            code. At granularity `whole` the positions make each sequence_* and token_mean baseline the
            leave-one-out of the sums.
        outcome_penalties_B: added to the outcomes before their baseline, at most 0 (`overlong_penalties_B`); the sums
            may be negative. None: nothing.

    Raises:
        ValueError: outcomes NaN or outside [0, 1], process rewards not finite, shapes differ, a mask with
            holes, positions outside the mask, or a group of one response where the estimator compares within
            a group.
    """
    mask_BT = check_response_mask(response_mask_BT)
    check_rows(mask_BT.shape[0], outcome_rewards_B=outcome_rewards_B, group_ids_B=group_ids_B)
    check_outcomes(outcome_rewards_B)
    rewards_B = as_float(outcome_rewards_B)
    if outcome_penalties_B is not None:
        check_rows(mask_BT.shape[0], outcome_penalties_B=outcome_penalties_B)
        rewards_B = rewards_B + outcome_penalties_B.to(rewards_B)
    outcome_BT = _outcome_advantages(rewards_B, mask_BT, group_ids_B, settings)
    parts_BT = [(settings.outcome_coef, outcome_BT)]
    if process_rewards_BT is not None and settings.process_coef != 0:
        positions_BT = mask_BT if process_positions_BT is None else process_positions_BT.bool()
        check_shapes(mask_BT.shape, process_rewards_BT=process_rewards_BT, process_positions_BT=positions_BT)
        if bool((positions_BT & ~mask_BT).any()):
            raise ValueError(
                "process_positions_BT marks padding; build it with reward_positions on the same mask"
            )
        rewards_BT = zero_padding(as_float(process_rewards_BT), mask_BT)
        if not bool(rewards_BT.isfinite().all()):
            raise ValueError("process_rewards_BT holds NaN or infinity inside the mask; the PRM has diverged")
        if settings.process_normalization == "batch_max":
            largest = discounted_return_BT(rewards_BT, mask_BT, gamma=1.0).abs().max()
            rewards_BT = rewards_BT / (largest + BATCH_MAX_EPS)
        process_BT = _process_advantages(rewards_BT, mask_BT, positions_BT, group_ids_B, settings)
        parts_BT.append((settings.process_coef, process_BT))
    if settings.whitening == "per_source":
        parts_BT = [(coef, masked_whiten_BT(part_BT, mask_BT)) for coef, part_BT in parts_BT]
    advantages_BT = torch.stack([coef * part_BT for coef, part_BT in parts_BT]).sum(dim=0)
    if settings.whitening == "joint":
        advantages_BT = masked_whiten_BT(advantages_BT, mask_BT)
    return zero_padding(advantages_BT, mask_BT)


def _outcome_advantages(
    outcome_rewards_B: Tensor, mask_BT: Tensor, group_ids_B: Tensor, settings: AdvantageSettings
) -> Tensor:
    """Baseline the outcome as its estimator says (rloo: Eq. 4) and discount it from the last token."""
    advantage_B = outcome_rewards_B
    if settings.estimator == "rloo":
        advantage_B = outcome_rewards_B - leave_one_out_mean(outcome_rewards_B, group_ids_B)
    elif settings.estimator == "grpo":
        centred_B = outcome_rewards_B - group_mean(outcome_rewards_B, group_ids_B)
        advantage_B = centred_B * _inverse_std(outcome_rewards_B, group_ids_B)
    on_last_token_BT = advantage_B[:, None] * last_token_onehot(mask_BT)
    return discounted_return_BT(on_last_token_BT, mask_BT, settings.gamma_outcome)


def _process_advantages(
    rewards_BT: Tensor,
    mask_BT: Tensor,
    positions_BT: Tensor,
    group_ids_B: Tensor,
    settings: AdvantageSettings,
) -> Tensor:
    """Return the process part: the discounted return of the baselined rewards, or minus the PRM's value."""
    if settings.estimator == "prm_value":
        value_BT = rewards_BT.cumsum(dim=1) - rewards_BT
        return -zero_padding(value_BT, mask_BT)
    if settings.estimator == "rloo":
        rewards_BT = _leave_one_out_rewards(rewards_BT, positions_BT, group_ids_B, settings.process_baseline)
    elif settings.estimator == "grpo":
        mean_B = masked_mean(rewards_BT, positions_BT, dim=1)
        centred_BT = rewards_BT - group_mean(mean_B, group_ids_B)[:, None]
        rewards_BT = zero_padding(centred_BT, positions_BT) * _inverse_std(mean_B, group_ids_B)[:, None]
    return discounted_return_BT(rewards_BT, mask_BT, settings.gamma_process)


def _leave_one_out_rewards(
    rewards_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor, baseline: ProcessBaseline
) -> Tensor:
    """Subtract a process baseline (Eq. 5) on the tokens that carry rewards."""
    sum_B = masked_sum(rewards_BT, positions_BT, dim=1)
    mean_B = masked_mean(rewards_BT, positions_BT, dim=1)
    if baseline == "released":
        size_B = group_sizes(group_ids_B).to(rewards_BT.dtype)
        others_B = leave_one_out_mean(mean_B, group_ids_B) + mean_B / (size_B - 1)
        baselined_BT = rewards_BT * (size_B / (size_B - 1))[:, None] - others_B[:, None]
    elif baseline == "sequence_spread":
        num_positions_B = positions_BT.sum(dim=1).clamp(min=1)
        share_B = leave_one_out_mean(sum_B, group_ids_B) / num_positions_B
        baselined_BT = rewards_BT - share_B[:, None]
    else:
        per_response_B = sum_B if baseline == "sequence_sum" else mean_B
        baselined_BT = rewards_BT - leave_one_out_mean(per_response_B, group_ids_B)[:, None]
    return zero_padding(baselined_BT, positions_BT)


def _inverse_std(values_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """1 / the group's standard deviation, or 0 for a group that is constant up to rounding."""
    std_B = group_std(values_B, group_ids_B)
    scale_B = group_mean(values_B.abs(), group_ids_B)
    varies_B = std_B > CONSTANT_GROUP_RTOL * scale_B
    return torch.where(varies_B, 1.0 / torch.where(varies_B, std_B, torch.ones_like(std_B)), 0.0)
