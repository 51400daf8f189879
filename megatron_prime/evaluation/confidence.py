"""Confidence intervals of means over problems, by the percentile bootstrap."""

from collections.abc import Sequence

import numpy as np

_CHUNK_VALUES = 1 << 22
"""Resampled values in memory at one time."""


def bootstrap_interval(
    values: Sequence[float], confidence: float, num_resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of `values`, one a problem (each problem's own mean over its samples).

    Problems are resampled, not responses: those of one problem are not independent. The random numbers depend on the
    seed and the sizes alone, so that equal results have equal intervals. Where all values are equal, the interval is a
    point: the bootstrap knows of no problems but these.

    Args:
        values: not empty.
        confidence: such as 0.95.
        num_resamples: 1 or more.
        seed: of the resampling.
    """
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, len(data), num_resamples]))
    )
    rows = max(1, _CHUNK_VALUES // len(data))
    means = [
        data[generator.integers(len(data), size=(min(rows, num_resamples - start), len(data)))].mean(axis=1)
        for start in range(0, num_resamples, rows)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
