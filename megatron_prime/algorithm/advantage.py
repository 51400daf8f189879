"""Computation of advantages from outcome and process rewards (Eq. 4, 5, 7, 8 and Sec. 5.4).

Every function takes the GLOBAL batch: `batch_max` and whitening over one rank's share would make the result
depend on the number of ranks, as it does in the released code.

Shapes: B responses, T response tokens (right padded).
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_outcomes, check_policy_mask, check_rows, check_shapes
from megatron_prime.algorithm.groups import leave_one_out_mean, pair_accuracy
from megatron_prime.algorithm.registry import ESTIMATORS, Requirements
from megatron_prime.algorithm.tensor_ops import (
    as_float,
    discounted_return_BT,
    last_token_onehot,
    masked_whiten_BT,
    zero_padding,
)
from megatron_prime.config.tables.advantage import AdvantageConfig

BATCH_MAX_EPS = 1e-6


class AdvantageEstimator(Protocol):
    """Turns rewards into advantages; constructed with the [advantage] section.

    Built-in ones are the modules of `algorithm.estimators`; examples/custom_estimator.py shows one of a user's.
    `prime_advantages` normalizes rewards beforehand, and weighs and whitens the two parts afterwards.
    """

    requires: ClassVar[Requirements]
    """Settings that the estimator requires elsewhere in the configuration; `check` rejects a run without them."""

    def outcome_advantages_B(self, outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
        """Return the advantage of each response from the outcomes alone, [B].

        Args:
            outcome_rewards_B: [B], in [0, 1] plus over-long penalties.
            group_ids_B: int [B]; equal for responses to one prompt, in any order, groups of any size.
        """
        ...

    def process_advantages_BT(  # noqa: N802
        self, process_rewards_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, group_ids_B: Tensor
    ) -> Tensor:
        """Return the advantage of each token from the process rewards alone, [B, T].

        Values on tokens that the policy did not write are dropped afterwards.

        Args:
            process_rewards_BT: [B, T], normalized, zero in the padding.
            mask_BT: bool [B, T], the response tokens, an environment's replies included: the steps of a return.
            positions_BT: bool [B, T], the tokens that carry process rewards, a subset of mask_BT.
            group_ids_B: as above.
        """
        ...


@torch.no_grad()
def prime_advantages(
    outcome_rewards_B: Tensor,
    process_rewards_BT: Tensor | None,
    response_mask_BT: Tensor,
    group_ids_B: Tensor,
    config: AdvantageConfig,
    process_positions_BT: Tensor | None = None,
    outcome_penalties_B: Tensor | None = None,
    policy_mask_BT: Tensor | None = None,
    turn_rewards_BT: Tensor | None = None,
) -> Tensor:
    """Return the advantages of the global batch, [B, T], zero where the policy did not write, detached.

    Without process rewards, or with process_coef 0, this is the estimator's outcome part alone (for rloo,
    leave-one-out exactly), constant along a response while gamma_outcome is 1. See `advantage_parts` for the
    arguments and errors.
    """
    parts_BT = advantage_parts(
        outcome_rewards_B,
        process_rewards_BT,
        response_mask_BT,
        group_ids_B,
        config,
        process_positions_BT,
        outcome_penalties_B,
        policy_mask_BT,
        turn_rewards_BT,
    )
    return joined_parts(parts_BT, response_mask_BT if policy_mask_BT is None else policy_mask_BT, config)


@torch.no_grad()
def advantage_parts(
    outcome_rewards_B: Tensor,
    process_rewards_BT: Tensor | None,
    response_mask_BT: Tensor,
    group_ids_B: Tensor,
    config: AdvantageConfig,
    process_positions_BT: Tensor | None = None,
    outcome_penalties_B: Tensor | None = None,
    policy_mask_BT: Tensor | None = None,
    turn_rewards_BT: Tensor | None = None,
) -> list[Tensor]:
    """Return the weighted outcome part and, if there is one, the weighted process part of the advantages, each [B, T].

    Both are zero on tokens that the policy did not write. Baselines and returns count those tokens nevertheless: a
    reward on a reply counts for the decisions before it, as the outcome on the last token of the response does.

    Args:
        outcome_rewards_B: in [0, 1], no NaN.
        process_rewards_BT: from `implicit_reward.process_rewards_BT`, or None.
        response_mask_BT: bool or 0/1, right padded.
        group_ids_B: int; equal for responses to one prompt, in any order, groups of any size >= 2.
        config: the [advantage] section.
        process_positions_BT: tokens that carry process rewards, from `implicit_reward.reward_positions`;
            baselines average over and apply to them alone. None: all response tokens, as in the released
            code. At granularity `whole` the positions make each sequence_* and token_mean baseline the
            leave-one-out of the sums.
        outcome_penalties_B: added to the outcomes before their baseline, at most 0 (`overlong_penalties_B`); the sums
            may be negative. None: nothing.
        policy_mask_BT: bool or 0/1, the tokens that the policy wrote; its holes are an environment's replies. None:
            all tokens of the responses.
        turn_rewards_BT: rewards of an environment, each on the last token that the policy wrote in a turn. The outcome
            part gets their return, discounted by gamma_outcome, minus the mean of the other responses' sums where the
            estimator compares within a group. None: nothing.

    Raises:
        ValueError: outcomes NaN or outside [0, 1], process rewards not finite, shapes differ, a wrong mask,
            positions outside the mask, or a group of one response where the estimator compares within a group.
    """
    mask_BT, policy_BT = check_policy_mask(policy_mask_BT, response_mask_BT)
    check_rows(mask_BT.shape[0], outcome_rewards_B=outcome_rewards_B, group_ids_B=group_ids_B)
    check_outcomes(outcome_rewards_B)
    estimator: AdvantageEstimator = ESTIMATORS.load(config.estimator)(config)
    rewards_B = as_float(outcome_rewards_B)
    if outcome_penalties_B is not None:
        check_rows(mask_BT.shape[0], outcome_penalties_B=outcome_penalties_B)
        rewards_B = rewards_B + outcome_penalties_B.to(rewards_B)
    advantages_B = estimator.outcome_advantages_B(rewards_B, group_ids_B)
    on_last_token_BT = advantages_B[:, None] * last_token_onehot(mask_BT)
    outcome_BT = discounted_return_BT(on_last_token_BT, mask_BT, config.gamma_outcome)
    if turn_rewards_BT is not None:
        outcome_BT = outcome_BT + _turn_part(
            turn_rewards_BT, mask_BT, group_ids_B, config, has_baseline=estimator.requires.group
        )
    parts_BT = [(config.outcome_coef, outcome_BT)]
    if process_rewards_BT is not None and config.process_coef != 0:
        positions_BT = mask_BT if process_positions_BT is None else process_positions_BT.bool()
        rewards_BT = _normalized_rewards(process_rewards_BT, mask_BT, policy_BT, positions_BT, config)
        process_BT = estimator.process_advantages_BT(rewards_BT, mask_BT, positions_BT, group_ids_B)
        trust = _trust(rewards_BT, outcome_rewards_B, group_ids_B, config)
        parts_BT.append((config.process_coef * trust, process_BT))
    parts_BT = [(coef, zero_padding(part_BT, policy_BT)) for coef, part_BT in parts_BT]
    if config.whitening == "per_source":
        parts_BT = [(coef, masked_whiten_BT(part_BT, policy_BT)) for coef, part_BT in parts_BT]
    return [coef * part_BT for coef, part_BT in parts_BT]


@torch.no_grad()
def joined_parts(parts_BT: Sequence[Tensor], policy_mask_BT: Tensor, config: AdvantageConfig) -> Tensor:
    """Return the sum of the parts, whitened if `whitening` is joint, [B, T], zero where the policy did not write."""
    advantages_BT = torch.stack(list(parts_BT)).sum(dim=0)
    if config.whitening == "joint":
        advantages_BT = masked_whiten_BT(advantages_BT, policy_mask_BT)
    return zero_padding(advantages_BT, policy_mask_BT)


def process_share(parts_BT: Sequence[Tensor], policy_mask_BT: Tensor) -> float:
    """Return the process part's share of the advantages, by standard deviations over the policy's tokens, in [0, 1].

    std(process) / (std(outcome) + std(process)) of the weighted parts of the global batch; 0 without a process part.
    """
    mask_BT = policy_mask_BT.bool()
    spreads = [float(part_BT[mask_BT].double().std(unbiased=False)) for part_BT in parts_BT]
    return sum(spreads[1:]) / sum(spreads) if any(spreads) else 0.0


def _turn_part(
    turn_rewards_BT: Tensor,
    mask_BT: Tensor,
    group_ids_B: Tensor,
    config: AdvantageConfig,
    *,
    has_baseline: bool,
) -> Tensor:
    """Return the returns of an environment's rewards, less the mean sum of the other responses, [B, T]."""
    check_shapes(mask_BT.shape, turn_rewards_BT=turn_rewards_BT)
    rewards_BT = zero_padding(as_float(turn_rewards_BT), mask_BT)
    returns_BT = discounted_return_BT(rewards_BT, mask_BT, config.gamma_outcome)
    if not has_baseline:
        return returns_BT
    return returns_BT - leave_one_out_mean(rewards_BT.sum(dim=1), group_ids_B)[:, None]


def _trust(
    process_rewards_BT: Tensor, outcome_rewards_B: Tensor, group_ids_B: Tensor, config: AdvantageConfig
) -> float:
    """Return the factor of process_coef in [0, 1] that `process_trust` says."""
    if config.process_trust == "full":
        return 1.0
    accuracy, num_pairs = pair_accuracy(process_rewards_BT.sum(dim=1), outcome_rewards_B, group_ids_B)
    # Without a pair nothing restrains the process rewards, so nothing speaks for them either.
    return max(0.0, 2 * accuracy - 1) if num_pairs else 0.0


def _normalized_rewards(
    process_rewards_BT: Tensor,
    mask_BT: Tensor,
    policy_BT: Tensor,
    positions_BT: Tensor,
    config: AdvantageConfig,
) -> Tensor:
    """Check the process rewards and normalize them as `process_normalization` says."""
    check_shapes(mask_BT.shape, process_rewards_BT=process_rewards_BT, process_positions_BT=positions_BT)
    if bool((positions_BT & ~mask_BT).any()):
        raise ValueError(
            "process_positions_BT marks padding; build it with reward_positions on the same mask"
        )
    rewards_BT = zero_padding(as_float(process_rewards_BT), mask_BT)
    if not bool(rewards_BT.isfinite().all()):
        raise ValueError("process_rewards_BT holds NaN or infinity inside the mask; the PRM has diverged")
    if config.process_normalization == "batch_max":
        # Undiscounted whatever gamma_process is: the released code normalizes by plain returns. Those of replies do
        # not count, because nothing trains them.
        largest = zero_padding(discounted_return_BT(rewards_BT, mask_BT, gamma=1.0), policy_BT).abs().max()
        rewards_BT = rewards_BT / (largest + BATCH_MAX_EPS)
    return rewards_BT
