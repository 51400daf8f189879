"""Filters that choose the groups to train on.

Every filter returns a bool per row, equal over the rows of a group, so filters combine with &. A group is kept
or dropped as a whole: a baseline over part of a group would be biased towards the responses that survived.

Shapes: B responses.
"""

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_outcomes, check_rows, check_unit_interval
from megatron_prime.algorithm.groups import group_mean


def accuracy_band_keep(outcome_rewards_B: Tensor, group_ids_B: Tensor, low: float, high: float) -> Tensor:
    """Keep the groups whose mean outcome lies in [low, high], both ends included.

    Step 3 of Algorithm 1; the paper has 0.2 to 0.8. Mean and bounds are compared in float32: 1/5 correct
    is then inside a bound of 0.2 whatever its float64 digits say. A group with a NaN outcome (verifier error)
    is never kept, not even by the band [0, 1].

    Args:
        outcome_rewards_B: in [0, 1], or NaN for a verifier error.
        group_ids_B: int, any order, groups need not be neighbours nor of one size.
        low: lower bound, in [0, 1].
        high: upper bound, in [0, 1], not below low.

    Raises:
        ValueError: bad bounds, outcomes outside [0, 1], shapes differ.
    """
    check_unit_interval(low=low, high=high)
    if low > high:
        raise ValueError(f"the accuracy band [{low}, {high}] is empty; low must not exceed high")
    check_outcomes(outcome_rewards_B, allow_nan=True)
    accuracy_B = group_mean(outcome_rewards_B.double(), group_ids_B).float()
    low_32, high_32 = torch.tensor([low, high], dtype=torch.float32, device=accuracy_B.device)
    # A NaN mean compares false with both bounds, so a group with a verifier error is dropped.
    return (accuracy_B >= low_32) & (accuracy_B <= high_32)


def verified_keep(outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Keep the groups without a NaN outcome.

    NaN says that the verifier failed, not that the answer is wrong: an error scored 0.5 or 0 would pass the
    band and teach noise. The whole group is dropped, because its leave-one-out baselines would lack a member.

    Raises:
        ValueError: outcomes outside [0, 1] other than NaN, shapes differ.
    """
    check_outcomes(outcome_rewards_B, allow_nan=True)
    return ~group_mean(outcome_rewards_B, group_ids_B).isnan()


def truncation_keep(truncated_B: Tensor, group_ids_B: Tensor, max_fraction: float) -> Tensor:
    """Keep the groups of which at most max_fraction of the responses were cut at the length limit.

    Args:
        truncated_B: bool, whether the response was cut.
        group_ids_B: int, any order.
        max_fraction: in [0, 1]; 0 keeps only groups without a cut response, 1 keeps all. Compared in float32.

    Raises:
        ValueError: max_fraction outside [0, 1], truncated_B is not bool, shapes differ.
    """
    check_unit_interval(max_fraction=max_fraction)
    if truncated_B.dtype != torch.bool:
        raise ValueError(f"truncated_B is {truncated_B.dtype}; it must be bool")
    check_rows(group_ids_B.numel(), truncated_B=truncated_B)
    fraction_B = group_mean(truncated_B.double(), group_ids_B).float()
    return fraction_B <= torch.tensor(max_fraction, dtype=torch.float32, device=fraction_B.device)
