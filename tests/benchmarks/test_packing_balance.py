"""The packing benchmark packs the same rows with both methods, and this project's packing is more even."""

import pytest

from benchmarks import packing_balance as packing
from megatron_prime.models.costs import row_costs
from megatron_prime.models.packing import pack


@pytest.mark.parametrize("name", list(packing.CASES)[:3])
def test_both_methods_pack_every_row_and_ours_is_more_even(name):
    num_rows, longest, max_tokens, num_ranks, padding = packing.CASES[name]
    lengths, costs = packing.batch(0, num_rows, longest, row_costs(packing.QWEN_7B))
    methods = [
        packing.naive(lengths, max_tokens, num_ranks),
        pack(lengths, max_tokens, num_ranks, costs, padding),
    ]
    for method in methods:
        rows = [row for rank in method.rows for rows in rank for row in rows]
        assert sorted(rows) == list(range(num_rows))
        assert all(sum(lengths[row] for row in rows) <= max_tokens for rank in method.rows for rows in rank)
    (naive_slowest, naive_in_step, _), (slowest, in_step, padded) = (
        packing.figures(method, lengths, costs, padding) for method in methods
    )
    assert slowest < 1.01 < naive_slowest
    assert in_step < naive_in_step
    assert 0 <= padded < 0.03


def test_figures_of_a_packing_made_by_hand():
    by_hand = packing.Packing((((0,), (1,)), ((2,), ())))
    slowest, in_step, padded = packing.figures(by_hand, [4, 3, 5], [4.0, 3.0, 5.0], packing.Padding(1, 4))
    assert slowest == 7 / 6
    assert in_step == (5 + 3) / 6
    assert padded == 1 - 12 / (4 + 4 + 8 + 4)
