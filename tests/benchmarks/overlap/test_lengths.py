"""The distribution of lengths has the published figures."""

import math
import random
import statistics

import pytest

from benchmarks.overlap.lengths import Lengths, Workload, quantiles


def test_mean_tail_and_limit_are_the_published_ones():
    rng = random.Random(0)
    free = Lengths(limit=10**9, correlation=0.0)
    drawn = [length for _ in range(10_000) for length in free.draw(rng, 4)]
    assert statistics.fmean(drawn) == pytest.approx(7615, rel=0.02)
    median, extreme = quantiles(drawn, (0.5, 0.999))
    assert extreme / median == pytest.approx(10, rel=0.1)
    cut = [length for _ in range(10_000) for length in Lengths().draw(rng, 4)]
    assert max(cut) == 40960
    assert sum(length == 40960 for length in cut) / len(cut) == pytest.approx(0.0043, abs=0.0015)


def test_responses_to_one_prompt_are_correlated():
    rng = random.Random(1)
    pairs = [[math.log(length) for length in Lengths().draw(rng, 2)] for _ in range(10_000)]
    assert statistics.correlation(*zip(*pairs, strict=True)) == pytest.approx(0.5, abs=0.03)


def test_a_group_depends_on_its_prompt_and_version_alone():
    work = Workload(keep_rate=0.25)
    assert work.draw(3, 1) == Workload(keep_rate=0.25).draw(3, 1) != work.draw(3, 2)
    kept = [work.draw(index, 0).is_kept for index in range(4000)]
    assert statistics.fmean(kept) == pytest.approx(0.25, abs=0.03)
    group = work.draw(0, 0)
    assert group.num_tokens == 4 * 512 + sum(group.lengths)
    assert Workload(verify_s=0.0).draw(0, 0).verify_s == (0.0,) * 4


def test_quantiles():
    assert quantiles(range(100), (0.0, 0.5, 0.99, 1.0)) == [0, 50, 99, 99]
