"""Thresholds, ratios and their intervals, over runs that have the same task and seeds."""

import math
import random
import statistics
from collections.abc import Sequence

from benchmarks.learning.records import WINDOW, Record

AXES = ("rollouts", "seconds", "cpu_seconds", "flops")
NUM_RESAMPLES = 10_000
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's distribution with 1 to 9 degrees of freedom."""


def crossing(record: Record, threshold: float, axis: str = "rollouts") -> float | None:
    """Return the sum of `axis` at which the smoothed accuracy reaches a threshold, interpolated; None if never."""
    curve, sums = record.smooth(), getattr(record, axis)[WINDOW - 1 :]
    for place, value in enumerate(curve):
        if value < threshold:
            continue
        if place == 0:
            return float(sums[0])
        share = (threshold - curve[place - 1]) / (value - curve[place - 1])
        return sums[place - 1] + share * (sums[place] - sums[place - 1])
    return None


def counted(record: Record, threshold: float, axis: str = "rollouts") -> float:
    """Return the crossing, or the whole budget of a run that never crosses."""
    found = crossing(record, threshold, axis)
    return float(getattr(record, axis)[-1]) if found is None else found


def ratio(
    base: Sequence[Record], other: Sequence[Record], threshold: float, axis: str = "rollouts"
) -> tuple[float, float, float]:
    """Return how many times as much `base` needs as `other`, with the ends of its 95 % interval.

    It is the ratio of the sums over seeds; the interval is the percentile bootstrap over pairs of runs of one seed. A
    run that never crosses counts with its whole budget, so that the ratio is too small if `base` has one.
    """
    pairs = [
        (counted(one, threshold, axis), counted(two, threshold, axis))
        for one, two in zip(base, other, strict=True)
    ]
    rng = random.Random(0)
    drawn = sorted(_ratio(rng.choices(pairs, k=len(pairs))) for _ in range(NUM_RESAMPLES))
    return (
        _ratio(pairs),
        drawn[round(0.025 * (NUM_RESAMPLES - 1))],
        drawn[round(0.975 * (NUM_RESAMPLES - 1))],
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(one for one, _ in pairs) / sum(two for _, two in pairs)


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % t-interval; NaN with a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def paired(records: Sequence[Record], methods: Sequence[str]) -> dict[str, list[Record]]:
    """Return the runs of each method on the seeds that all of them have, in the order of the seeds."""
    by_method = {method: {each.seed: each for each in records if each.method == method} for method in methods}
    common = set.intersection(*(set(runs) for runs in by_method.values())) if by_method else set()
    return {method: [runs[seed] for seed in sorted(common)] for method, runs in by_method.items()}


def band(runs: Sequence[Record]) -> list[tuple[float, float, float, float]]:
    """Return (rollouts, mean accuracy, lower end, upper end) of each step of runs of the same length."""
    points = []
    for step, values in enumerate(zip(*(run.smooth() for run in runs), strict=False)):
        mean, half = mean_and_half(values)
        half = 0.0 if math.isnan(half) else half
        points.append(
            (runs[0].rollouts[step + WINDOW - 1], mean, max(0.0, mean - half), min(1.0, mean + half))
        )
    return points
