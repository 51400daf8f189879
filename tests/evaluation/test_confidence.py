"""The bootstrap against the normal approximation and an exhaustive enumeration of resamples."""

import itertools
import math

import numpy as np
import pytest

from megatron_prime.evaluation import confidence
from megatron_prime.evaluation.confidence import bootstrap_interval, interval_metrics


def test_many_problems_give_nearly_the_normal_interval():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values.tolist(), 0.95, 4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_few_problems_give_the_interval_of_all_possible_resamples():
    values = [0.0, 0.25, 1.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    wanted = np.quantile(means, [0.1, 0.9])
    assert bootstrap_interval(values, 0.8, 20_000) == pytest.approx(tuple(wanted), abs=0.05)


def test_the_interval_depends_on_seed_and_sizes_but_not_on_chunking(monkeypatch):
    values = [0.0, 1.0, 0.5, 0.25]
    first = bootstrap_interval(values, 0.95, 300, seed=1)
    assert bootstrap_interval(values, 0.95, 300, seed=1) == first
    assert bootstrap_interval(values, 0.95, 301, seed=2) != first
    monkeypatch.setattr(confidence, "_CHUNK_VALUES", 40)
    assert bootstrap_interval(values, 0.95, 300, seed=1) == first


def test_equal_values_give_an_interval_of_zero_width():
    assert bootstrap_interval([1.0] * 5, 0.95, 50) == (1.0, 1.0)


def test_bounds_are_named_after_their_metric():
    assert interval_metrics({"a": (1.0, 2.0)}) == {"a_ci_low": 1.0, "a_ci_high": 2.0}
