"""Every epoch contains every row once, in an order that a resumed run reproduces."""

import pytest

from megatron_prime.training.minibatches import minibatches


def deal(num_rows=12, num_minibatches=3, num_epochs=2, seed=4, step_index=7):
    return list(minibatches(num_rows, num_minibatches, num_epochs, seed, step_index))


def test_an_epoch_has_every_row_once_in_minibatches_of_equal_size():
    dealt = deal()
    assert [len(rows) for rows in dealt] == [4] * 6
    for epoch in (dealt[:3], dealt[3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(12))


def test_rows_of_a_minibatch_ascend():
    assert all(rows == sorted(rows) for rows in deal(num_rows=60, num_minibatches=4))


def test_a_single_minibatch_is_the_whole_batch_in_order():
    assert deal(num_minibatches=1, num_epochs=3) == [list(range(12))] * 3


def test_minibatches_depend_only_on_seed_step_and_epoch():
    assert deal() == deal()
    assert deal() != deal(seed=5)
    assert deal() != deal(step_index=8)
    first_epoch, second_epoch = deal()[:3], deal()[3:]
    assert first_epoch != second_epoch
    assert deal(num_epochs=5)[:6] == deal(), "more epochs leave the first ones as they are"


def test_every_pair_of_rows_shares_a_minibatch_at_some_step():
    partners = {
        tuple(rows) for step in range(30) for rows in deal(num_rows=4, num_minibatches=2, step_index=step)
    }
    assert partners == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_unequal_minibatches_are_refused():
    with pytest.raises(ValueError, match="12 responses cannot be cut into 5 equal minibatches"):
        deal(num_minibatches=5)
