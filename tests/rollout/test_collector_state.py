import pytest

from megatron_prime.rollout.collection_stats import CollectionTally
from megatron_prime.rollout.collector_state import CollectorState
from megatron_prime.rollout.group_filter import FilterDecision
from tests.rollout.test_collection_stats import group

MIXED, EASY, HARD = group(0, [1.0, 0.0]), group(1, [1.0, 1.0]), group(2, [0.0, 0.0])


def tally_of(*groups):
    decisions = [
        FilterDecision.KEPT
        if each is MIXED
        else FilterDecision.TOO_EASY
        if each is EASY
        else FilterDecision.TOO_HARD
        for each in groups
    ]
    return CollectionTally(groups, decisions)


def test_the_keep_rate_is_a_moving_average():
    first = CollectorState().update(tally_of(MIXED, EASY, HARD), False)
    assert first.keep_rate == pytest.approx(2 / 4)
    assert first.update(tally_of(MIXED), False).keep_rate == pytest.approx((1 / 2 + 1) / 2)


def test_short_steps_in_a_row_are_counted_and_a_full_step_resets_the_count():
    state = CollectorState().update(tally_of(EASY, EASY, HARD), True).update(tally_of(EASY, MIXED), True)
    assert (state.num_short_steps, state.num_sampled, state.num_all_right, state.num_all_wrong) == (
        2,
        5,
        3,
        1,
    )
    assert "60% were all right and 20% all wrong. The data is too easy" in state.explain()
    assert state.update(tally_of(MIXED), False).num_short_steps == 0


def test_the_explanation_names_the_more_frequent_cause():
    assert "too hard" in CollectorState().update(tally_of(HARD, HARD, MIXED), True).explain()
    assert "reasons below" in CollectorState().update(tally_of(HARD, EASY, MIXED, MIXED), True).explain()
