import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.groups import (
    group_mean,
    group_sizes,
    group_std,
    group_table,
    leave_one_out_mean,
    prior_logits_B,
)
from tests.algorithm import oracle
from tests.algorithm.oracle import Batch

RAGGED = (2, 5, 3)


def values_of(batch):
    return [sum(row) for row in batch.rewards]


@pytest.mark.parametrize("sizes", [(4, 4, 4), RAGGED])
def test_statistics_match_the_loops(sizes):
    batch = Batch(seed=1, sizes=sizes)
    values, ids = values_of(batch), batch.ids
    values_B = torch.tensor(values, dtype=torch.float64)
    for function, expected in (
        (group_mean, [oracle.mean(values[j] for j in oracle.members(ids, i)) for i in range(len(ids))]),
        (
            leave_one_out_mean,
            [oracle.mean(values[j] for j in oracle.others(ids, i)) for i in range(len(ids))],
        ),
        (group_std, [oracle.std(values[j] for j in oracle.members(ids, i)) for i in range(len(ids))]),
    ):
        torch.testing.assert_close(function(values_B, batch.group_ids_B), torch.tensor(expected).double())
    assert group_sizes(batch.group_ids_B).tolist() == [len(oracle.members(ids, i)) for i in range(len(ids))]


def test_gather_and_scatter_are_inverse():
    batch = Batch(seed=2, sizes=RAGGED)
    table = group_table(batch.group_ids_B)
    values_B = torch.arange(10.0) + 1
    gathered_PG = table.gather(values_B)
    assert torch.equal(table.scatter(gathered_PG), values_B)
    assert torch.equal(gathered_PG == 0, ~table.filled)
    assert sorted(table.sizes.tolist()) == sorted(RAGGED)


def test_empty_slots_hide_what_row_zero_holds():
    table = group_table(torch.tensor([7, 8, 8]))
    gathered_PG = table.gather(torch.tensor([float("nan"), 1.0, 2.0]))
    assert gathered_PG[1].tolist() == [1.0, 2.0]
    assert gathered_PG[0, 1] == 0


@pytest.mark.parametrize("seed", range(3))
def test_prior_logits_match_the_loops(seed):
    batch = Batch(seed, sizes=(2, 5, 1, 3), soft=True)
    expected = [oracle.prior_logit(batch.outcomes, batch.ids, i) for i in range(len(batch.ids))]
    assert prior_logits_B(batch.outcome_rewards_B, batch.group_ids_B).tolist() == pytest.approx(expected)


def test_a_prior_leaves_out_the_own_outcome_and_stays_finite():
    ids_B = torch.tensor([0, 0, 0, 1, 1])
    outcomes_B = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    priors_B = prior_logits_B(outcomes_B, ids_B)
    for i in range(5):
        flipped_B = outcomes_B.clone()
        flipped_B[i] = 1 - outcomes_B[i]
        assert prior_logits_B(flipped_B, ids_B)[i] == priors_B[i]
    assert priors_B[2] > priors_B[0], "both others of its group are right"
    for constant in (0.0, 1.0):
        edge = math.log(0.98 / 0.02)
        priors_B = prior_logits_B(torch.full((4,), constant), torch.zeros(4).long())
        assert priors_B.tolist() == pytest.approx([edge if constant else -edge] * 4, rel=1e-6)
    assert prior_logits_B(torch.ones(1), torch.zeros(1).long()).tolist() == [0.0], "nothing is known"


def test_a_group_of_one_has_no_others():
    ids_B = torch.tensor([0, 0, 1])
    for function in (leave_one_out_mean, group_std):
        with pytest.raises(ValueError, match="1 groups have one; raise group_size"):
            function(torch.zeros(3), ids_B)
    assert group_mean(torch.tensor([1.0, 3.0, 5.0]), ids_B).tolist() == [2.0, 2.0, 5.0]


def test_ids_must_be_a_list_of_integers():
    for bad in (torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="group_ids_B must be integers"):
            group_table(bad)
    with pytest.raises(ValueError, match="values_B"):
        group_mean(torch.zeros(3), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("value", [0.3, 0.1, 1 / 3])
def test_constant_groups_have_exactly_no_contrast(value):
    values_B = torch.full((7,), value)
    ids_B = torch.tensor([0, 1, 0, 1, 0, 0, 1])
    assert torch.equal(leave_one_out_mean(values_B, ids_B), values_B)
    assert torch.equal(group_mean(values_B, ids_B), values_B)


def test_low_precision_comes_back_as_float32():
    result_B = group_mean(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([0, 0]))
    assert result_B.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(2, 5), min_size=1, max_size=4))
def test_row_order_and_id_names_do_not_matter(seed, sizes):
    batch = Batch(seed, sizes=tuple(sizes))
    values_B = torch.tensor(values_of(batch), dtype=torch.float64)
    order_B = torch.randperm(len(values_B), generator=torch.Generator().manual_seed(seed))
    for function in (group_mean, leave_one_out_mean, group_std, prior_logits_B):
        straight_B = function(values_B, batch.group_ids_B)
        shuffled_B = function(values_B[order_B], -1000 * batch.group_ids_B[order_B] + 3)
        torch.testing.assert_close(shuffled_B, straight_B[order_B])
