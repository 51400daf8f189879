"""The bootstrap against the normal approximation, and against an exhaustive enumeration of resamples."""

import itertools
import math

import numpy as np
import pytest

from megatron_prime.evaluation import confidence
from megatron_prime.evaluation.confidence import bootstrap_interval


def test_it_is_near_the_normal_interval_of_many_problems():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values.tolist(), 0.95, 4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_it_is_that_of_all_resamples_of_few_problems():
    values = [0.0, 0.25, 1.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    wanted = np.quantile(means, [0.1, 0.9])
    assert bootstrap_interval(values, 0.8, 20_000) == pytest.approx(tuple(wanted), abs=0.05)


def test_seeds_sizes_and_chunks(monkeypatch):
    values = [0.0, 1.0, 0.5, 0.25]
    first = bootstrap_interval(values, 0.95, 300, seed=1)
    assert bootstrap_interval(values, 0.95, 300, seed=1) == first
    assert bootstrap_interval(values, 0.95, 301, seed=2) != first
    monkeypatch.setattr(confidence, "_CHUNK_VALUES", 40)
    assert bootstrap_interval(values, 0.95, 300, seed=1) == first


def test_equal_values_have_a_point():
    assert bootstrap_interval([1.0] * 5, 0.95, 50) == (1.0, 1.0)
