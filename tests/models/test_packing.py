import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.models.packed_sequences import pack_sequences
from megatron_prime.models.packing import Padding, RowCosts, pack

COSTS = RowCosts(attention_tokens=4096, output_share=0.3)


def random_lengths(seed, num_rows, longest):
    rng = random.Random(seed)
    return [max(1, int(longest * rng.random() ** 2)) for _ in range(num_rows)]


def heavy_tailed_lengths(seed, num_rows, longest=4096):
    """Return log-normal lengths, clipped at both ends: most responses are short, some reach the limit."""
    rng = random.Random(seed)
    return [min(longest, max(32, int(rng.lognormvariate(6.2, 1.0)))) for _ in range(num_rows)]


def imbalance(packing, costs):
    """Return the largest cost of a rank, relative to the mean."""
    totals = [sum(costs[row] for rows in rank for row in rows) for rank in packing.rows]
    return max(totals) * len(totals) / sum(totals)


@st.composite
def batches(draw, most_rows=40):
    """Generate arguments of `pack`: lengths, max_tokens, num_ranks, costs, padding."""
    max_tokens = draw(st.integers(8, 60))
    lengths = draw(st.lists(st.integers(1, max_tokens), max_size=most_rows))
    sequences_to = draw(st.sampled_from([1, 4, 8]))
    padding = Padding(sequences_to, sequences_to * draw(st.sampled_from([1, 2, 3])))
    costs = [COSTS(length, draw(st.integers(0, length))) for length in lengths]
    return lengths, max_tokens, draw(st.integers(1, 5)), costs, padding


@settings(deadline=None, max_examples=300)
@given(batches())
def test_any_batch_is_packed_completely_within_the_limit_and_equally_often_per_rank(batch):
    lengths, max_tokens, num_ranks, costs, padding = batch
    packing = pack(*batch)
    flat = [row for rank in packing.rows for rows in rank for row in rows]
    assert sorted(flat) == list(range(len(lengths))), "every row exactly once"
    assert [len(rank) for rank in packing.rows] == [packing.num_microbatches] * num_ranks
    limit = padding.microbatch(max_tokens)
    for rank in packing.rows:
        totals = [sum(costs[row] for row in rows) for rows in rank]
        assert totals == sorted(totals, reverse=True), "the m-th microbatches of the ranks are alike"
        for rows in rank:
            # The limit holds for the packed tensors, padding included.
            packed = pack_sequences(
                [([1] * lengths[row], []) for row in rows], padding.microbatch_to, 0, padding.sequences_to
            )
            assert packed.num_tokens <= max(limit, padding.microbatch_to)
    empty = sum(not rows for rank in packing.rows for rows in rank)
    assert empty == max(0, num_ranks * packing.num_microbatches - len(lengths))
    items = [[[("row", row) for row in rows] for rows in rank] for rank in packing.rows]
    assert packing.restore(items) == [("row", row) for row in range(len(lengths))]


@settings(deadline=None, max_examples=60)
@given(batches(most_rows=6))
def test_small_batches_are_close_to_the_best_split(batch):
    """Compare with every assignment of rows to two ranks, where one microbatch holds all rows of a rank."""
    lengths, _, _, costs, _ = batch
    packing = pack(lengths, max(1, sum(lengths)), 2, costs)
    assert packing.num_microbatches == 1
    ours = max(sum(costs[row] for rows in rank for row in rows) for rank in packing.rows)
    best = min(
        max(sum(c for c, side in zip(costs, sides, strict=True) if side == which) for which in (0, 1))
        for sides in product((0, 1), repeat=len(costs))
    )
    assert ours <= 7 / 6 * best + 1e-9, "longest-first is within 7/6 of the best for two ranks (Graham, 1969)"


LAYOUT_PADDINGS = {
    "tp8+sp": Padding(1, 8),
    "cp4": Padding(8, 8),
    "tp8+sp cp4": Padding(8, 64),
    "tp8+sp cp8": Padding(16, 128),
    "FP8 tp4+sp cp2": Padding(4, 256),
}


@pytest.mark.parametrize("layout", LAYOUT_PADDINGS)
@pytest.mark.parametrize("seed", range(3))
def test_padding_stays_under_three_percent_on_a_heavy_tail(seed, layout):
    padding, lengths = LAYOUT_PADDINGS[layout], heavy_tailed_lengths(seed, 1024)
    packing = pack(lengths, 16384, 8, [COSTS(length) for length in lengths], padding)
    total = 0
    for rank in packing.rows:
        for rows in rank:
            packed = pack_sequences(
                [([1] * lengths[row], []) for row in rows], padding.microbatch_to, 0, padding.sequences_to
            )
            total += packed.num_tokens
    assert 0 <= (total - sum(lengths)) / total < 0.03


@pytest.mark.parametrize("num_ranks", [2, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_a_heavy_tail_is_balanced_in_loose_and_in_tight_batches(seed, num_ranks):
    lengths = heavy_tailed_lengths(seed, 32 * num_ranks)
    costs = [COSTS(length, length // 2) for length in lengths]
    for max_tokens in (4096, 16384):
        packing = pack(lengths, max_tokens, num_ranks, costs)
        assert imbalance(packing, costs) < 1.02
        assert packing.num_microbatches <= -(-sum(lengths) // (max_tokens * num_ranks)) + 1


def test_groups_need_not_stay_together():
    """Four equal responses of one prompt go to four ranks."""
    packing = pack([100] * 4, 400, 4)
    assert [rank[0] for rank in packing.rows] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_every_row_once_within_the_limit_and_equally_many_microbatches(seed, num_ranks):
    lengths = random_lengths(seed, num_rows=10 + 31 * seed, longest=1000)
    packing = pack(lengths, 1000, num_ranks)
    seen = []
    for microbatches in packing.rows:
        assert len(microbatches) == packing.num_microbatches
        for rows in microbatches:
            assert sum(lengths[row] for row in rows) <= 1000
            seen.extend(rows)
    assert sorted(seen) == list(range(len(lengths)))
    assert packing.num_ranks == num_ranks
    assert packing.num_rows == len(lengths)


@pytest.mark.parametrize("seed", range(5))
def test_few_microbatches_and_ranks_of_equal_cost(seed):
    lengths = random_lengths(seed, num_rows=256, longest=2000)
    row_costs = [COSTS(length) for length in lengths]
    packing = pack(lengths, 4000, 4, row_costs)
    fewest = -(-sum(lengths) // (4000 * 4))
    assert packing.num_microbatches <= fewest + 1
    assert imbalance(packing, row_costs) <= 1.005


@pytest.mark.parametrize("num_rows", [7, 24, 50])
def test_no_microbatch_is_empty_if_there_are_enough_rows(num_rows):
    # Rows just over half the limit allow one row per microbatch, the worst case for an even distribution.
    packing = pack([51] * num_rows, 100, 4)
    empty = sum(packing.is_empty(rank, m) for rank in range(4) for m in range(packing.num_microbatches))
    assert empty == 4 * packing.num_microbatches - num_rows


def test_rows_that_barely_fit_are_packed():
    lengths = [6, 5, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1] * 4
    packing = pack(lengths, 10, 2)
    assert all(sum(lengths[row] for row in rows) <= 10 for rank in packing.rows for rows in rank)
    assert packing.num_microbatches <= sum(lengths) // 20 + 1


def test_fewer_rows_than_ranks_leaves_empty_microbatches():
    packing = pack([3, 2], 10, 4)
    assert packing.num_microbatches == 1
    assert sorted(rows for rank in packing.rows for rows in rank) == [(), (), (0,), (1,)]
    assert sum(packing.is_empty(rank, 0) for rank in range(4)) == 2


def test_without_rows_each_rank_has_one_empty_microbatch():
    assert pack([], 10, 2).rows == (((),), ((),))


def test_packing_is_deterministic():
    lengths = random_lengths(0, 100, 50)
    assert pack(lengths, 100, 3) == pack(list(lengths), 100, 3)


def test_restore_undoes_the_packing():
    lengths = random_lengths(1, 60, 90)
    packing = pack(lengths, 100, 3)
    packed = [[[f"row {row}" for row in rows] for rows in microbatches] for microbatches in packing.rows]
    assert packing.restore(packed) == [f"row {row}" for row in range(60)]
    packed[0][0] = packed[0][0][:-1]
    with pytest.raises(ValueError, match="zip"):
        packing.restore(packed)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([5, 11], 10, 1), "row 1 has 11 tokens, more than max_tokens = 10"),
        (([5, 0], 10, 1), "row 1 has 0 tokens"),
        (([5], 10, 0), "at least one rank"),
    ],
)
def test_invalid_rows_are_refused_with_a_reason(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        pack(*arguments)
