"""Implicit process rewards: the scaled log-ratio of PRM and reference (Eq. 3).

The reward is q_t = log pi_phi(y_t | y_<t) - log pi_ref(y_t | y_<t). At the first step pi_phi = pi_ref and q
must be exactly 0, which it is only if both models run the same kernels on the same packing: rounding noise is
information to whatever normalizes it later.

Where an environment replies to the policy, a response has tokens of both, one after another, and the PRM reads all of
them. `prm.scored_tokens` says whose tokens are in the sum of the response and have rewards; the q of the others is 0.
Those of the environment are scored by default, since their surprise is the evidence for or against the decisions before
them.

Shapes: B responses, T response tokens (right padded).
"""

from typing import get_args

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_choice, check_policy_mask, check_shapes
from megatron_prime.algorithm.tensor_ops import as_float, by_row_blocks, next_columns_BT, zero_padding
from megatron_prime.config.tables.prm import Granularity, PRMConfig, ScoredTokens
from megatron_prime.types import scored_tokens_BT


def log_ratio_BT(  # noqa: N802
    prm_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, scored_mask_BT: Tensor
) -> Tensor:
    """Return q_t in nats, zero outside the scored tokens, differentiable in the PRM's log-probs alone.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(scored_mask_BT.shape, prm_logprobs_BT=prm_logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    # Both terms are masked before the difference: -inf - -inf in the padding would poison the gradient.
    prm_BT = zero_padding(as_float(prm_logprobs_BT), scored_mask_BT)
    ref_BT = zero_padding(as_float(ref_logprobs_BT), scored_mask_BT).detach()
    return prm_BT - ref_BT


def sequence_scores_B(  # noqa: N802
    prm_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, scored_mask_BT: Tensor, beta: float
) -> Tensor:
    """Return beta * sum_t q_t, the logit that the response is correct, differentiable in the PRM's log-probs.

    Raises:
        ValueError: beta is not positive, or shapes differ.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be positive (the paper's is 0.05)")
    return beta * log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, scored_mask_BT).sum(dim=1)


def reward_positions(
    response_mask_BT: Tensor,
    granularity: Granularity,
    unit_ids_BT: Tensor | None = None,
    policy_mask_BT: Tensor | None = None,
    *,
    scored_tokens: ScoredTokens = "all",
) -> Tensor:
    """Return a bool tensor, true on the tokens that carry a process reward at this granularity.

    token: every scored token; step, turn: the last token that the policy wrote in each step or turn; whole: the last
    token that the policy wrote.

    Args:
        response_mask_BT: bool or 0/1, right padded.
        granularity: the tokens to mark.
        unit_ids_BT: int, the step or turn of each token, nondecreasing along a response; read for `step` and `turn`
            only, and on the policy's tokens only. A reply belongs to the unit before it.
        policy_mask_BT: bool or 0/1, the tokens that the policy wrote; None for all of the response.
        scored_tokens: the tokens that carry rewards at `token`.

    Raises:
        ValueError: unknown granularity, a wrong mask, ids missing or decreasing.
    """
    check_choice("granularity", granularity, get_args(Granularity))
    mask_BT, policy_BT = check_policy_mask(policy_mask_BT, response_mask_BT)
    if granularity == "token":
        return scored_tokens_BT(mask_BT, policy_BT, scored_tokens)
    num_columns = mask_BT.shape[1]
    if granularity == "whole":
        return last_positions_BT(policy_BT)
    if unit_ids_BT is None:
        raise ValueError(
            f"granularity {granularity!r} needs unit_ids_BT, the {granularity} of each token: segment the responses, "
            "or use 'token' or 'whole'"
        )
    check_shapes(mask_BT.shape, unit_ids_BT=unit_ids_BT)
    following_BT = following_columns_BT(policy_BT)
    change_BT = unit_ids_BT.gather(1, following_BT.clamp(max=num_columns - 1)) - unit_ids_BT
    has_following_BT = policy_BT & (following_BT < num_columns)
    if bool(((change_BT < 0) & has_following_BT).any()):
        raise ValueError(
            f"unit_ids_BT decreases along a response; number each {granularity} from left to right"
        )
    return policy_BT & ((change_BT != 0) | (following_BT == num_columns))


@torch.no_grad()
def process_rewards_BT(  # noqa: N802
    prm_logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    config: PRMConfig,
    unit_ids_BT: Tensor | None = None,
    policy_mask_BT: Tensor | None = None,
) -> Tensor:
    """Return the process rewards r_t = beta * q_t (Eq. 3), or q_t by reward_scale, detached, zero in the padding.

    Every scored token counts, the last one of the response included. A granularity coarser than `token` sums the
    token rewards of each unit on its position of `reward_positions`: those from the first token that the policy wrote
    in it up to the next unit, with the replies between, so that a response's total is the same at every granularity.

    Args:
        prm_logprobs_BT: nats.
        ref_logprobs_BT: nats.
        response_mask_BT: bool or 0/1, right padded.
        config: the [prm] section; reads beta, granularity, reward_scale and scored_tokens.
        unit_ids_BT: int, nondecreasing; needed for granularity `step` and `turn`.
        policy_mask_BT: bool or 0/1; None for all tokens of the response.

    Raises:
        ValueError: shapes differ, a wrong mask, bad ids.
    """
    positions_BT = reward_positions(
        response_mask_BT,
        config.granularity,
        unit_ids_BT,
        policy_mask_BT,
        scored_tokens=config.scored_tokens,
    )
    policy_BT = (response_mask_BT if policy_mask_BT is None else policy_mask_BT).bool()
    rewards_BT = token_rewards_BT(prm_logprobs_BT, ref_logprobs_BT, response_mask_BT, config, policy_mask_BT)
    return unit_sums_BT(rewards_BT, positions_BT, policy_BT, config.granularity)


def token_rewards_BT(  # noqa: N802
    prm_logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    config: PRMConfig,
    policy_mask_BT: Tensor | None = None,
) -> Tensor:
    """Return the reward of each token in the scale of the run, whatever the granularity, zero where none is scored."""
    policy_BT = (response_mask_BT if policy_mask_BT is None else policy_mask_BT).bool()
    scored_BT = scored_tokens_BT(response_mask_BT.bool(), policy_BT, config.scored_tokens)
    rewards_BT = log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, scored_BT)
    return config.beta * rewards_BT if config.reward_scale == "beta" else rewards_BT


def unit_sums_BT(  # noqa: N802
    rewards_BT: Tensor, positions_BT: Tensor, policy_BT: Tensor, granularity: Granularity
) -> Tensor:
    """Return, on each position, the sum of the token rewards of its unit, which ends where the policy writes the next.

    At granularity `token` these are the rewards themselves.
    """
    if granularity == "token":
        return rewards_BT

    def of_rows(rewards_bT: Tensor, positions_bT: Tensor, policy_bT: Tensor) -> Tensor:
        running_bT = running_sums_BT(rewards_bT)
        at_end_bT = running_bT.gather(1, following_columns_BT(policy_bT))
        columns_T = torch.arange(rewards_bT.shape[1], device=rewards_bT.device)
        latest_bT = torch.where(positions_bT, columns_T, -1).cummax(dim=1).values
        before_bT = torch.nn.functional.pad(latest_bT[:, :-1], (1, 0), value=-1)
        at_start_bT = torch.where(before_bT >= 0, at_end_bT.gather(1, before_bT.clamp(min=0)), 0.0)
        return zero_padding(at_end_bT - at_start_bT, positions_bT).to(rewards_bT.dtype)

    return by_row_blocks(of_rows, rewards_BT, positions_BT, policy_BT)


def running_sums_BT(rewards_BT: Tensor) -> Tensor:  # noqa: N802
    """Return the sum of the rewards before each column, and of all at T, [B, T + 1].

    In float64, because the difference of two running sums loses the digits of the smaller one.
    """
    return torch.nn.functional.pad(rewards_BT.double().cumsum(dim=1), (1, 0))


def following_columns_BT(positions_BT: Tensor) -> Tensor:  # noqa: N802
    """Return the column of the first position after each column, T where there is none."""
    columns_BT = next_columns_BT(positions_BT)
    return torch.nn.functional.pad(columns_BT[:, 1:], (0, 1), value=positions_BT.shape[1])


def last_positions_BT(positions_BT: Tensor) -> Tensor:  # noqa: N802
    """Return a bool tensor, true on the last position of each row; a row without one has none."""

    def of_rows(positions_bT: Tensor) -> Tensor:
        return positions_bT & (following_columns_BT(positions_bT) == positions_bT.shape[1])

    return by_row_blocks(of_rows, positions_BT)
