"""Tests of context parallelism: the zig-zag layout against loops and Megatron, gathers and sums on real processes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_prime.parallel.context import local_tokens
from tests.parallel.parallel_cases import CONTEXT_CASES, CONTEXT_SLOPE, NUM_RANKS


def tokens_by_loop(bounds, size, rank):
    """Return the tokens of a rank, by looking up the chunk of every token in a loop."""
    tokens = []
    for start, stop in pairwise(bounds):
        early, late = [], []
        for token in range(start, stop):
            chunk = (token - start) * 2 * size // (stop - start)
            if chunk == rank:
                early.append(token)
            if chunk == 2 * size - 1 - rank:
                late.append(token)
        tokens += early + late
    return tokens


@given(size=st.integers(1, 5), chunks=st.lists(st.integers(0, 4), max_size=5))
def test_ranks_hold_an_early_and_a_late_chunk_of_each_sequence(size, chunks):
    bounds = [0]
    for chunk in chunks:
        bounds.append(bounds[-1] + 2 * size * chunk)
    by_rank = [local_tokens(bounds, size, rank) for rank in range(size)]
    assert all(tokens.dtype == torch.int64 for tokens in by_rank)
    assert [tokens.tolist() for tokens in by_rank] == [
        tokens_by_loop(bounds, size, rank) for rank in range(size)
    ]
    assert sorted(torch.cat(by_rank).tolist()) == list(range(bounds[-1]))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_causal_attention_costs_every_rank_the_same(size):
    bounds = [0, 2 * size, 14 * size]
    start_of = [start for start, stop in pairwise(bounds) for _ in range(stop - start)]
    costs = {
        sum(token - start_of[token] + 1 for token in local_tokens(bounds, size, rank).tolist())
        for rank in range(size)
    }
    assert len(costs) == 1


def test_a_length_that_is_not_a_multiple_of_the_chunks_fails_an_assertion():
    with pytest.raises(AssertionError, match="6 tokens cannot be cut into 4 chunks"):
        local_tokens([0, 8, 14], 2, 0)


@pytest.fixture(params=CONTEXT_CASES)
def case_and_groups(request, four_processes):
    """Return a case and the reports of each of its context groups, in the order of context ranks."""
    case = CONTEXT_CASES[request.param]
    reports = [report["context"][request.param] for report in four_processes]
    size = case["size"]
    return case, [reports[first : first + size] for first in range(0, NUM_RANKS, size)]


def test_gathered_tokens_are_in_the_order_of_the_batch(case_and_groups):
    case, groups = case_and_groups
    for report in (report for group in groups for report in group):
        assert report["size"] == case["size"]
        assert torch.equal(report["gathered"], case["whole_SKD"])
        assert torch.equal(report["strided"], case["whole_SKD"])
        assert torch.equal(report["column"], case["whole_SKD"][:, 0, 0])


def test_the_gradient_of_a_token_is_the_sum_over_ranks(case_and_groups):
    case, groups = case_and_groups
    for group in groups:
        for rank, report in enumerate(group):
            own = tokens_by_loop(case["bounds"], case["size"], rank)
            assert report["gathered_grad"].shape == (len(own), *case["whole_SKD"].shape[1:])
            for place, token in enumerate(own):
                expected = sum(
                    2 * weights[token] * case["whole_SKD"][token] for weights in case["weights_RSKD"]
                )
                torch.testing.assert_close(report["gathered_grad"][place], expected)


def test_a_sum_covers_every_token_and_parameter_gradients_add_up(case_and_groups):
    case, groups = case_and_groups
    column_S, weights_S = case["whole_SKD"][:, 0, 0], case["weights_RSKD"][0, :, 0, 0]
    for group in groups:
        for report in group:
            torch.testing.assert_close(report["total"], CONTEXT_SLOPE * column_S)
            torch.testing.assert_close(report["total_grad"], 2 * weights_S * CONTEXT_SLOPE * column_S)
            assert report["part_is_untouched"]
        expected = 2 * CONTEXT_SLOPE * (weights_S * column_S**2).sum()
        torch.testing.assert_close(sum(report["slope_grad"] for report in group), expected)


def test_megatron_assigns_the_same_tokens_to_every_rank(case_and_groups):
    _, groups = case_and_groups
    for report in (report for group in groups for report in group):
        assert report["own"].tolist() == report["megatron_tokens"]


def test_megatron_rotates_each_token_by_its_position_in_its_sequence(case_and_groups):
    case, groups = case_and_groups
    rotated_SKD = case["whole_SKD"].clone()
    for start, stop in pairwise(case["bounds"]):
        for token in range(start, stop):
            for low in range(2):
                angle, pair = case["angles_TD"][token - start, low], (low, low + 2)
                x, y = (case["whole_SKD"][token, :, dim] for dim in pair)
                rotated_SKD[token, :, pair[0]] = x * angle.cos() - y * angle.sin()
                rotated_SKD[token, :, pair[1]] = y * angle.cos() + x * angle.sin()
    for group in groups:
        for rank, report in enumerate(group):
            own = tokens_by_loop(case["bounds"], case["size"], rank)
            torch.testing.assert_close(report["rotated"], rotated_SKD[own])
