"""Lengths have the mean that is asked for, and a batch trains."""

import pytest

from megatron_prime.rehearsal.batch import RehearsedBatches, lengths, rehearsed_batch


@pytest.mark.parametrize(("mean", "shortest", "longest"), [(50, 1, 99), (64, 28, 100), (100, 100, 100)])
def test_lengths_are_spread_evenly_around_their_mean(mean, shortest, longest):
    found = lengths(101, mean, 100, seed=0)
    assert sum(found) / len(found) == pytest.approx(mean, abs=0.5)
    assert (min(found), max(found)) == (shortest, longest)


def test_every_group_has_right_and_wrong_responses(small):
    batch = rehearsed_batch(small.config, 16, 48, policy_version=3)
    assert batch.num_rows == 32
    by_group = batch.outcome_rewards_B.view(8, 4).mean(dim=1)
    assert by_group.tolist() == [0.5] * 8
    assert {rollout.policy_version for rollout in batch.rollouts} == {3}


def test_the_batch_is_the_same_in_every_step(small):
    batch = rehearsed_batch(small.config, 16, 48, policy_version=0)
    assert RehearsedBatches(batch).collect(5) is batch
