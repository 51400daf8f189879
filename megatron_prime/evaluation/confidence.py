"""Confidence intervals of means over problems, by the percentile bootstrap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK_VALUES = 1 << 22
"""Number of resampled values held in memory at a time."""

Intervals = dict[str, tuple[float, float]]
"""Metric name -> (lower, upper) bound of its confidence interval."""


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """Options of the bootstrap that computes confidence intervals."""

    confidence: float = 0.95
    num_resamples: int = 1000
    """0 computes no intervals."""
    seed: int = 0


def bootstrap_interval(
    values: Sequence[float], confidence: float, num_resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Return the confidence interval (lower, upper) of the mean of `values`.

    Problems are resampled, not responses, because the responses to one problem are not independent. The random numbers
    depend only on the seed and the sizes, so equal results have equal intervals. If all values are equal, the interval
    has zero width, since the bootstrap can only draw values that were observed.

    Args:
        values: one value per problem (its mean over samples); not empty.
        confidence: level of the interval, such as 0.95.
        num_resamples: number of bootstrap resamples, at least 1.
        seed: seed of the resampling.
    """
    data = np.asarray(values, dtype=np.float64)
    # An explicit bit generator and seed sequence: the default of numpy may change between versions.
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, len(data), num_resamples]))
    )
    # All resamples of a large benchmark would not fit into memory, so they are drawn in chunks of rows. The stream of
    # random numbers does not depend on the chunk size.
    rows = max(1, _CHUNK_VALUES // len(data))
    means = [
        data[generator.integers(len(data), size=(min(rows, num_resamples - start), len(data)))].mean(axis=1)
        for start in range(0, num_resamples, rows)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def interval_metrics(intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the bounds of each interval as the metrics `<name>_ci_low` and `<name>_ci_high`."""
    return {
        f"{name}_ci_{side}": bound
        for name, bounds in intervals.items()
        for side, bound in zip(("low", "high"), bounds, strict=True)
    }
