"""Context parallelism: the zig-zag layout against loops, and gathers and sums on real processes."""

import itertools

import context_worker
import pytest
import torch
from distributed_runner import run_distributed

from megatron_prime.parallel.context import local_tokens

BOUNDS = [0, 8, 8, 24, 28]


@pytest.mark.parametrize(("size", "bounds"), [(1, [0, 2, 6]), (2, BOUNDS), (3, [0, 6, 18]), (4, [0, 16, 24])])
def test_every_token_has_one_rank_and_chunks_are_paired(size, bounds):
    seen = []
    for rank in range(size):
        expected = []
        for start, stop in itertools.pairwise(bounds):
            chunk = (stop - start) // (2 * size)
            for index in (rank, 2 * size - 1 - rank):
                expected += [start + index * chunk + offset for offset in range(chunk)]
        assert local_tokens(bounds, size, rank).tolist() == expected
        seen += expected
    assert sorted(seen) == list(range(bounds[-1]))


def test_a_batch_without_sequences_has_no_tokens():
    assert local_tokens([0], 2, 1).tolist() == []


@pytest.fixture(scope="module")
def whole():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, BOUNDS[-1], 2, 3, generator=generator)


@pytest.fixture(scope="module")
def results(whole):
    return run_distributed(context_worker.gather_and_sum, 2, BOUNDS, whole[0], whole[1])


def test_gathered_tokens_are_in_the_order_of_the_batch(results, whole):
    for result in results:
        assert torch.equal(result["gathered"], whole[0])


def test_gradients_are_those_of_all_ranks_losses(results, whole):
    """Rank r weighs its own tokens twice: a token's gradient sums 2 (its owner) and 1 (the other)."""
    for result in results:
        expected = (2 * whole[0] * whole[1] * (2 + 1))[result["own"]]
        torch.testing.assert_close(result["gradient"], expected)


def test_sums_restore_the_whole_and_pass_gradients_unchanged(results, whole):
    column = whole[0][:, 0, 0]
    for result in results:
        torch.testing.assert_close(result["total"], column)
        torch.testing.assert_close(result["total_gradient"], 2 * column)
