"""What a step uses follows from the order of its prompts, and how far it looks ahead from what is missing."""

import itertools

import pytest

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.group_filter import FilterDecision
from megatron_prime.rollout.prefix import Prefix, max_prompts

KEPT, DROPPED = FilterDecision.KEPT, FilterDecision.TOO_HARD


def test_every_order_of_decisions_gives_the_same_prefix():
    decisions = [DROPPED, KEPT, DROPPED, KEPT, KEPT]
    for order in itertools.permutations(range(5)):
        prefix, seen = Prefix(2, 5, None), set()
        prefix.num_submitted = 5
        for number in order:
            prefix.decide(number, [number], decisions[number])
            seen.add(number)
            assert prefix.is_complete == (seen >= {0, 1, 2, 3})
            if prefix.is_complete:
                break
        assert prefix.groups() == [([number], decisions[number]) for number in range(4)]


def test_a_step_without_enough_groups_ends_at_its_largest_number_of_prompts():
    prefix = Prefix(2, 3, None)
    prefix.num_submitted = 3
    for number in (2, 0):
        prefix.decide(number, [], DROPPED)
    assert (prefix.is_complete, prefix.num_undecided) == (False, 1)
    prefix.decide(1, [], KEPT)
    assert prefix.is_complete and len(prefix.groups()) == 3


@pytest.mark.parametrize(("keep_rate", "wanted"), [(None, 8), (1.0, 8), (0.5, 16), (0.01, 40)])
def test_at_first_the_keep_rate_of_earlier_steps_says_how_many_prompts_are_needed(keep_rate, wanted):
    assert Prefix(8, 40, keep_rate).num_wanted() == wanted


def test_prompts_in_work_count_and_nothing_is_wanted_when_enough_are_kept():
    prefix = Prefix(8, 40, 0.5)
    prefix.num_submitted = 16
    assert prefix.num_wanted() == 0
    for number in range(4, 8):
        prefix.decide(number, [], DROPPED)
    # 8 groups are missing at a rate of (0 + 2 * 0.5) / (4 + 2), and 12 are in work.
    assert prefix.num_wanted() == 40 - 16
    for number in range(8, 16):
        prefix.decide(number, [], KEPT)
    assert (prefix.num_wanted(), prefix.is_complete) == (0, False)


def test_the_largest_number_of_prompts_is_rounded_down():
    assert max_prompts(FilterConfig(max_prompts_factor=2.9), 4) == 11
