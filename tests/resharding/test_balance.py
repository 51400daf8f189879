"""Shares against an exhaustive and a greedy distribution; interleaving against the proportions."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_prime.resharding.balance import share_out, spread, windows


@given(
    loads=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    num_units=st.integers(0, 12),
    unit_size=st.integers(1, 7),
    data=st.data(),
)
def test_the_largest_load_is_as_small_as_with_a_greedy_distribution(loads, num_units, unit_size, data):
    """Giving each unit to the least loaded rank is optimal for equal units."""
    ranks = data.draw(st.lists(st.sampled_from(range(len(loads))), min_size=1, unique=True))
    before, greedy = list(loads), list(loads)
    for _ in range(num_units):
        greedy[min(ranks, key=greedy.__getitem__)] += unit_size
    shares = share_out(loads, ranks, num_units, unit_size)
    assert sum(count for _, count in shares) == num_units
    assert [rank for rank, _ in shares] == sorted({rank for rank, _ in shares})
    assert all(count > 0 and rank in ranks for rank, count in shares)
    added = Counter(dict(shares))
    assert loads == [load + added[rank] * unit_size for rank, load in enumerate(before)]
    assert sorted(loads) == sorted(greedy)


def test_the_largest_load_is_the_smallest_of_all_distributions():
    loads, ranks, num_units = [5, 0, 9, 3], [0, 1, 3], 4
    distributions = itertools.combinations_with_replacement(ranks, num_units)
    best = min(
        max(loads[rank] + Counter(distribution)[rank] * 2 for rank in ranks) for distribution in distributions
    )
    share_out(loads, ranks, num_units, 2)
    assert max(loads[rank] for rank in ranks) == best and loads[2] == 9


def test_equal_loads_go_to_the_lower_rank():
    assert share_out([0, 0, 0], [2, 0, 1], 4, 10) == ((0, 2), (1, 1), (2, 1))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_windows_keep_every_unit_in_order(counts, size):
    counts[-1] += -sum(counts) % size
    shares = list(enumerate(counts))
    cut = list(windows(shares, size))
    assert all(sum(count for _, count in window) == size for window in cut)
    units = [rank for window in cut for rank, count in window for _ in range(count)]
    assert units == [rank for rank, count in shares for _ in range(count)]


def test_an_incomplete_window_is_an_error():
    with pytest.raises(AssertionError, match="not full"):
        list(windows([(0, 3)], 2))


def test_ranks_are_interleaved_in_proportion():
    assert spread([(4, 3)]) == [4, 4, 4]
    assert spread([(0, 2), (1, 2)]) == [0, 1, 0, 1]
    turns = spread([(7, 2), (8, 6)])
    assert Counter(turns) == {7: 2, 8: 6}
    assert [turns[:4].count(7), turns[4:].count(7)] == [1, 1]
