"""Shares of the ranks are contiguous and join to the whole."""

import pytest

from megatron_prime.rollout.ranks import Ranks, gather_alone
from tests.support.rollout_doubles import run_on_ranks


@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 7, 12])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_shares_join_to_the_whole(num_items, num_ranks):
    items = list(range(num_items))
    shares = [Ranks(rank, num_ranks).share(items) for rank in range(num_ranks)]
    assert [item for share in shares for item in share] == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_gather_all_undoes_share_on_every_rank(num_ranks):
    items = [f"item {index}" for index in range(7)]
    assert run_on_ranks(num_ranks, lambda ranks: ranks.gather_all(ranks.share(items))) == [items] * num_ranks


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_what_rank_0_has_reaches_every_rank(num_ranks):
    assert run_on_ranks(num_ranks, lambda ranks: ranks.from_first(ranks.rank)) == [0] * num_ranks


def test_a_broadcast_is_used_where_there_is_one():
    ranks = Ranks(1, 2, gather_alone, broadcast=lambda item: ("of rank 0", item))
    assert ranks.from_first(None) == ("of rank 0", None)


def test_a_single_process_needs_no_gather():
    assert gather_alone([1, 2]) == [[1, 2]]
    assert Ranks().gather_all([3]) == [3]


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_outside_the_job_is_refused(rank, world_size):
    with pytest.raises(ValueError, match=f"rank {rank} is not among"):
        Ranks(rank, world_size)


def test_a_gather_that_loses_a_rank_is_an_error():
    with pytest.raises(RuntimeError, match="returned 1 lists for 2 ranks"):
        Ranks(0, 2, gather_alone).gather_all([1])
