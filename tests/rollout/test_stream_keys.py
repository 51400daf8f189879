"""Every step and every evaluation has a stream key of its own."""

import pytest

from megatron_prime.rollout.stream_keys import evaluation_stream_key, training_stream_key


def test_keys_are_distinct_and_fit_64_bits():
    steps = (0, 1, 2, 99, 2**39, 2**40 - 1)
    keys = [training_stream_key(step) for step in steps] + [evaluation_stream_key(step) for step in steps]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


@pytest.mark.parametrize("step", [-1, 2**40])
@pytest.mark.parametrize("key", [training_stream_key, evaluation_stream_key])
def test_a_step_out_of_range_has_no_key(key, step):
    with pytest.raises(ValueError, match="no stream key"):
        key(step)
