import random

import pytest

from megatron_prime.data.packing import pack, row_cost


def random_lengths(seed, num_rows, longest):
    rng = random.Random(seed)
    return [max(1, int(longest * rng.random() ** 2)) for _ in range(num_rows)]


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
    packing = pack(lengths, 4000, 4)
    fewest = -(-sum(lengths) // (4000 * 4))
    assert packing.num_microbatches <= fewest + 1
    costs = [sum(row_cost(lengths[row]) for rows in rank for row in rows) for rank in packing.rows]
    assert max(costs) <= 1.05 * sum(costs) / len(costs)


@pytest.mark.parametrize("num_rows", [7, 24, 50])
def test_no_microbatch_is_empty_while_rows_suffice(num_rows):
    # Rows just over half the limit: one a microbatch, the worst case for spreading.
    packing = pack([51] * num_rows, 100, 4)
    empty = sum(packing.is_empty(rank, m) for rank in range(4) for m in range(packing.num_microbatches))
    assert empty == 4 * packing.num_microbatches - num_rows


def test_tight_fits_still_pack():
    lengths = [6, 5, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1] * 4
    packing = pack(lengths, 10, 2)
    assert all(sum(lengths[row] for row in rows) <= 10 for rank in packing.rows for rows in rank)
    assert packing.num_microbatches <= sum(lengths) // 20 + 1


def test_fewer_rows_than_ranks_leaves_empty_microbatches():
    packing = pack([3, 2], 10, 4)
    assert packing.num_microbatches == 1
    assert sorted(rows for rank in packing.rows for rows in rank) == [(), (), (0,), (1,)]
    assert sum(packing.is_empty(rank, 0) for rank in range(4)) == 2


def test_no_rows_is_one_empty_microbatch_a_rank():
    assert pack([], 10, 2).rows == (((),), ((),))


def test_the_packing_is_a_function_of_its_arguments():
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
def test_what_cannot_be_packed_is_explained(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        pack(*arguments)
