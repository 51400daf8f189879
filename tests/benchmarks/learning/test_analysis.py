"""Thresholds and ratios by hand."""

import math

import pytest

from benchmarks.learning.analysis import band, counted, crossing, mean_and_half, paired, ratio
from benchmarks.learning.records import Record


def record(accuracy, method="rloo", seed=11, rollouts=128, tried=()):
    count = len(accuracy)
    sums = [rollouts * step for step in range(1, count + 1)]
    return Record(
        task="marks",
        method=method,
        seed=seed,
        tried=list(tried),
        overrides=["policy.lr=6e-4", *tried],
        commit="0",
        finished="",
        rollouts=sums,
        accuracy=list(accuracy),
        seconds=[2.0 * step for step in range(1, count + 1)],
        cpu_seconds=[1.0 * step for step in range(1, count + 1)],
        flops=sums,
        auc=[None] * count,
        pair_accuracy=[None] * count,
        load=1.0,
    )


def test_a_crossing_is_interpolated_between_the_means_of_four_steps():
    run = record([0.0, 0.4, 0.8, 0.8, 0.8, 0.8])  # means 0.5, 0.7, 0.8 at 512, 640 and 768 rollouts
    assert [crossing(run, at) for at in (0.5, 0.6, 0.7, 0.75)] == pytest.approx([512, 576, 640, 704])
    assert crossing(run, 0.81) is None and counted(run, 0.81) == 768
    assert crossing(run, 0.6, "seconds") == pytest.approx(9.0)
    assert run.final == pytest.approx(0.8)


def test_the_ratio_is_that_of_the_sums_and_its_interval_holds_it():
    slow = [record([0.0] * (4 + extra) + [0.9] * 4, seed=extra) for extra in range(8)]
    fast = [record([0.0] * 2 + [0.9] * 8, "hindsight", seed=extra) for extra in range(8)]
    mean, low, high = ratio(slow, fast, 0.7)
    assert mean == pytest.approx(
        sum(counted(run, 0.7) for run in slow) / sum(counted(run, 0.7) for run in fast)
    )
    assert low < mean < high
    assert ratio(slow, slow, 0.7) == (1.0, 1.0, 1.0)


def test_runs_are_paired_by_seed():
    runs = [record([0.5] * 4, "rloo", seed) for seed in (13, 11, 12)]
    runs += [record([0.5] * 4, "hindsight", seed) for seed in (12, 13, 14)]
    both = paired(runs, ["rloo", "hindsight"])
    assert [[run.seed for run in both[method]] for method in both] == [[12, 13], [12, 13]]


def test_a_band_is_the_interval_of_student():
    points = band([record([value] * 5, seed=seed) for seed, value in enumerate((0.1, 0.2, 0.3))])
    half = 4.30 * 0.1 / math.sqrt(3)
    assert points == [pytest.approx((x, 0.2, 0.0, 0.2 + half)) for x in (512, 640)]
    assert mean_and_half([0.1, 0.2, 0.3]) == pytest.approx((0.2, half))
