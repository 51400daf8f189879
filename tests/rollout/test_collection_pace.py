import pytest

from megatron_prime.rollout.collection_pace import Pace
from megatron_prime.rollout.collection_stats import CollectionTally
from megatron_prime.rollout.group_filter import Verdict
from tests.rollout.test_collection_stats import group

MIXED, EASY, HARD = group(0, [1.0, 0.0]), group(1, [1.0, 1.0]), group(2, [0.0, 0.0])


def tally_of(*groups):
    tally = CollectionTally()
    verdicts = [
        Verdict.KEPT if each is MIXED else Verdict.TOO_EASY if each is EASY else Verdict.TOO_HARD
        for each in groups
    ]
    tally.add_round(groups, verdicts)
    return tally


def test_the_keep_rate_is_a_running_mean():
    first = Pace().after(tally_of(MIXED, EASY, HARD), False)
    assert first.keep_rate == pytest.approx(2 / 4)
    assert first.after(tally_of(MIXED), False).keep_rate == pytest.approx((1 / 2 + 1) / 2)


def test_short_steps_in_a_row_add_up_and_a_good_one_starts_afresh():
    pace = Pace().after(tally_of(EASY, EASY, HARD), True).after(tally_of(EASY, MIXED), True)
    assert (pace.num_short_steps, pace.num_sampled, pace.num_all_right, pace.num_all_wrong) == (2, 5, 3, 1)
    assert "60% were all right and 20% all wrong. The data is too easy" in pace.explain()
    assert pace.after(tally_of(MIXED), False).num_short_steps == 0


def test_the_explanation_names_the_commoner_cause():
    assert "too hard" in Pace().after(tally_of(HARD, HARD, MIXED), True).explain()
    assert "reasons below" in Pace().after(tally_of(HARD, EASY, MIXED, MIXED), True).explain()
