"""Implicit process rewards: the scaled log-ratio of PRM and reference (Eq. 3).

The reward is q_t = log pi_phi(y_t | y_<t) - log pi_ref(y_t | y_<t). At the first step pi_phi = pi_ref and q
must be exactly 0, which it is only if both models run the same kernels on the same packing: rounding noise is
information to whatever normalizes it later.

Shapes: B responses, T response tokens (right padded).
"""

from typing import get_args

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_choice, check_response_mask, check_shapes
from megatron_prime.algorithm.tensor_ops import as_float, last_token_onehot, zero_padding
from megatron_prime.config.tables.prm import Granularity, PRMConfig


def log_ratio_BT(  # noqa: N802
    prm_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, response_mask_BT: Tensor
) -> Tensor:
    """Return q_t in nats, zero in the padding, differentiable in the PRM's log-probs alone.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(response_mask_BT.shape, prm_logprobs_BT=prm_logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    # Both terms are masked before the difference: -inf - -inf in the padding would poison the gradient.
    prm_BT = zero_padding(as_float(prm_logprobs_BT), response_mask_BT)
    ref_BT = zero_padding(as_float(ref_logprobs_BT), response_mask_BT).detach()
    return prm_BT - ref_BT


def sequence_scores_B(  # noqa: N802
    prm_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, response_mask_BT: Tensor, beta: float
) -> Tensor:
    """Return beta * sum_t q_t, the logit that the response is correct, differentiable in the PRM's log-probs.

    Raises:
        ValueError: beta is not positive, or shapes differ.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be positive (the paper's is 0.05)")
    return beta * log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, response_mask_BT).sum(dim=1)


def reward_positions(
    response_mask_BT: Tensor, granularity: Granularity, step_ids_BT: Tensor | None = None
) -> Tensor:
    """Return a bool tensor, true on the tokens that carry a process reward at this granularity.

    token: every response token; step: the last token of each step; whole: the last token of the response.

    Args:
        response_mask_BT: bool or 0/1, right padded.
        granularity: the tokens to mark.
        step_ids_BT: int, the step of each token, nondecreasing along a response; read for `step` only,
            ignored in the padding.

    Raises:
        ValueError: unknown granularity, a mask with holes, step ids missing or decreasing.
    """
    check_choice("granularity", granularity, get_args(Granularity))
    mask_BT = check_response_mask(response_mask_BT)
    if granularity == "token":
        return mask_BT
    last_BT = last_token_onehot(mask_BT)
    if granularity == "whole":
        return last_BT
    if step_ids_BT is None:
        raise ValueError(
            "granularity 'step' needs step_ids_BT: segment the responses, or use 'token' or 'whole'"
        )
    check_shapes(mask_BT.shape, step_ids_BT=step_ids_BT)
    both_real_BT = mask_BT[:, 1:]
    step_change_BT = step_ids_BT[:, 1:] - step_ids_BT[:, :-1]
    if bool(((step_change_BT < 0) & both_real_BT).any()):
        raise ValueError("step_ids_BT decreases along a response; number the steps from left to right")
    ends_step_BT = torch.nn.functional.pad((step_change_BT != 0) & both_real_BT, (0, 1), value=False)
    return ends_step_BT | last_BT


@torch.no_grad()
def process_rewards_BT(  # noqa: N802
    prm_logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    config: PRMConfig,
    step_ids_BT: Tensor | None = None,
) -> Tensor:
    """Return the process rewards r_t = beta * q_t (Eq. 3), or q_t by reward_scale, detached, zero in the padding.

    Every token counts, the last one of the response included. A granularity coarser than `token` sums the
    token rewards up to each position of `reward_positions`, so that a response's total is the same at every
    granularity.

    Args:
        prm_logprobs_BT: nats.
        ref_logprobs_BT: nats.
        response_mask_BT: bool or 0/1, right padded.
        config: the [prm] section; reads beta, granularity and reward_scale.
        step_ids_BT: int, nondecreasing; needed for granularity `step`.

    Raises:
        ValueError: shapes differ, a mask with holes, bad step ids.
    """
    positions_BT = reward_positions(response_mask_BT, config.granularity, step_ids_BT)
    rewards_BT = log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, response_mask_BT)
    if config.reward_scale == "beta":
        rewards_BT = config.beta * rewards_BT
    if config.granularity == "token":
        return rewards_BT
    return _sum_between(rewards_BT, positions_BT)


def _sum_between(rewards_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Return, on each position, the sum of the rewards since the position before it."""
    # In float64, because the difference of two running sums loses the digits of the smaller one.
    running_BT = rewards_BT.double().cumsum(dim=1)
    columns_T = torch.arange(rewards_BT.shape[1], device=rewards_BT.device)
    latest_BT = torch.where(positions_BT, columns_T, -1).cummax(dim=1).values
    before_BT = torch.nn.functional.pad(latest_BT[:, :-1], (1, 0), value=-1)
    running_before_BT = running_BT.gather(1, before_BT.clamp(min=0))
    sums_BT = running_BT - torch.where(before_BT >= 0, running_before_BT, 0.0)
    return zero_padding(sums_BT, positions_BT).to(rewards_BT.dtype)
