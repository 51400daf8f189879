"""Filters that choose the groups to train on, each a function of the responses of one group.

A group is kept or dropped as a whole: a baseline over part of a group would be biased towards the responses that
survived. The functions take plain numbers, because a step decides on a thousand groups, one by one as they come in.
"""

import math
from array import array
from collections.abc import Sequence

from megatron_prime.algorithm.checks import check_unit_interval


def is_verified(outcome_rewards: Sequence[float]) -> bool:
    """Return whether no outcome of a group is NaN.

    NaN says that the verifier failed, not that the answer is wrong: an error scored 0.5 or 0 would pass the
    band and teach noise. The whole group is dropped, because its leave-one-out baselines would lack a member.

    Raises:
        ValueError: outcomes outside [0, 1] other than NaN.
    """
    return not math.isnan(_mean_outcome(outcome_rewards))


def is_in_accuracy_band(outcome_rewards: Sequence[float], low: float, high: float) -> bool:
    """Return whether the mean outcome of a group lies in [low, high], both ends included.

    Step 3 of Algorithm 1; the paper has 0.2 to 0.8. Mean and bounds are compared in float32: 1/5 correct
    is then inside a bound of 0.2 whatever its float64 digits say. A group with a NaN outcome (verifier error)
    is never kept, not even by the band [0, 1].

    Args:
        outcome_rewards: in [0, 1], or NaN for a verifier error; rounded to float32, as a batch holds them.
        low: lower bound, in [0, 1].
        high: upper bound, in [0, 1], not below low.

    Raises:
        ValueError: bad bounds, outcomes outside [0, 1].
    """
    check_unit_interval(low=low, high=high)
    if low > high:
        raise ValueError(f"the accuracy band [{low}, {high}] is empty; low must not exceed high")
    low, mean, high = array("f", (low, _mean_outcome(outcome_rewards), high))
    # A NaN mean compares false with both bounds, so a group with a verifier error is dropped.
    return low <= mean <= high


def has_few_truncated(is_truncated: Sequence[bool], max_fraction: float) -> bool:
    """Return whether at most max_fraction of the responses of a group were cut at the length limit.

    Args:
        is_truncated: whether each response was cut.
        max_fraction: in [0, 1]; 0 keeps only groups without a cut response, 1 keeps all. Compared in float32.

    Raises:
        ValueError: max_fraction outside [0, 1].
    """
    check_unit_interval(max_fraction=max_fraction)
    fraction, most = array("f", (sum(is_truncated) / len(is_truncated), max_fraction))
    return fraction <= most


def _mean_outcome(outcome_rewards: Sequence[float]) -> float:
    """Return the mean of the outcomes in float32, summed exactly; NaN if one of them is."""
    if not all(0 <= outcome <= 1 or math.isnan(outcome) for outcome in outcome_rewards):
        raise ValueError(
            "outcome rewards must lie in [0, 1]: 0 or 1 for math, the fraction of tests passed for code"
        )
    return math.fsum(array("f", outcome_rewards)) / len(outcome_rewards)
