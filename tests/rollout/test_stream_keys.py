"""Every round of every step and every evaluation has a stream key of its own."""

import itertools

import pytest

from megatron_prime.rollout.stream_keys import MAX_ROUNDS, evaluation_stream_key, training_stream_key


def test_keys_are_distinct_and_fit_64_bits():
    steps, rounds = (0, 1, 2, 99, 2**39, 2**40 - 1), (0, 1, 7, MAX_ROUNDS - 1)
    keys = [training_stream_key(step, number) for step, number in itertools.product(steps, rounds)]
    keys += [evaluation_stream_key(step) for step in steps]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


@pytest.mark.parametrize(("step", "round_index"), [(-1, 0), (0, -1), (0, MAX_ROUNDS), (2**40, 0)])
def test_a_step_or_round_out_of_range_has_no_training_key(step, round_index):
    with pytest.raises(ValueError, match="no stream key"):
        training_stream_key(step, round_index)


@pytest.mark.parametrize("step", [-1, 2**40])
def test_a_step_out_of_range_has_no_evaluation_key(step):
    with pytest.raises(ValueError, match="no stream key"):
        evaluation_stream_key(step)
