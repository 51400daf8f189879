"""Filter decisions on groups, worked out by hand."""

import math

import pytest

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.group_filter import (
    FilterDecision,
    accuracy_histogram,
    decide_group,
    split_groups,
)
from megatron_prime.types import FinishReason, Prompt, Rollout

STOP, LENGTH, ABORT = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT


def group(rewards, finishes=None, index=0, versions=None):
    finishes = finishes or [STOP] * len(rewards)
    versions = versions or [1] * len(rewards)
    return [
        Rollout(Prompt(index, (1,), ""), sample, (1,), (-1.0,), finish, version, reward)
        for sample, (reward, finish, version) in enumerate(zip(rewards, finishes, versions, strict=True))
    ]


CASES = [
    (
        [1, 0, 0, 0, 0],
        None,
        FilterDecision.KEPT,
    ),  # 1/5 and 4/5 are the bounds of the accuracy band [0.2, 0.8].
    ([1, 1, 1, 1, 0], None, FilterDecision.KEPT),
    ([0, 0, 0, 0, 0], None, FilterDecision.TOO_HARD),
    ([1, 1, 1, 1, 1], None, FilterDecision.TOO_EASY),
    ([0.1, 0.1, 0.1, 0.1, 0.1], None, FilterDecision.TOO_HARD),
    ([0.9, 0.9, 0.9, 0.9, 0.9], None, FilterDecision.TOO_EASY),
    ([1, 0, math.nan, 0, 0], None, FilterDecision.VERIFIER_ERROR),
    ([1, 0, 0, 0, 0], [LENGTH, LENGTH, STOP, STOP, STOP], FilterDecision.KEPT),
    ([1, 0, 0, 0, 0], [LENGTH, LENGTH, LENGTH, STOP, STOP], FilterDecision.TRUNCATED),
    ([0, 0, 0, 0, 0], [LENGTH] * 5, FilterDecision.TRUNCATED),
    ([1, 0, math.nan, 0, 0], [ABORT, STOP, STOP, STOP, STOP], FilterDecision.ABORTED),
]


@pytest.mark.parametrize(("rewards", "finishes", "expected"), CASES)
def test_the_filter_decides_on_each_group(rewards, finishes, expected):
    assert decide_group(group(rewards, finishes), FilterConfig(max_truncated_fraction=0.4)) == expected


@pytest.mark.parametrize(("rewards", "finishes", "expected"), CASES)
def test_a_disabled_filter_still_drops_aborted_groups_and_verifier_errors(rewards, finishes, expected):
    always = {FilterDecision.ABORTED, FilterDecision.VERIFIER_ERROR}
    decision = decide_group(group(rewards, finishes), FilterConfig(enabled=False, max_truncated_fraction=0))
    assert decision == (expected if expected in always else FilterDecision.KEPT)


def test_rollouts_are_split_into_groups_and_checked():
    rollouts = group([1, 0], index=3) + group([0, 0], index=4)
    assert split_groups(rollouts, 2) == [rollouts[:2], rollouts[2:]]
    with pytest.raises(RuntimeError, match="not a multiple of 3"):
        split_groups(rollouts, 3)
    with pytest.raises(RuntimeError, match="prompt 3 are not ordered"):
        split_groups(rollouts, 4)
    with pytest.raises(RuntimeError, match="prompt 3 are not ordered"):
        split_groups(rollouts[1::-1], 2)
    with pytest.raises(RuntimeError, match=r"prompt 9 mixes policy versions \[1, 2\]"):
        split_groups(group([1, 0], index=9, versions=[2, 1]), 2)


def test_the_histogram_of_mean_accuracies():
    groups = [group([1, 1]), group([0, 1]), group([0, 0]), group([0, 0]), group([math.nan, 1])]
    text = accuracy_histogram(groups)
    assert text == (
        "groups by mean accuracy from 0.0: 2, from 0.2: 0, from 0.4: 1, from 0.6: 0, from 0.8: 1; "
        "with verifier errors: 1"
    )


def test_a_group_interrupted_by_a_weight_sync_is_refused_unless_allowed():
    interrupted = [
        Rollout(
            Prompt(0, (1,), ""),
            sample,
            (1, 2),
            (-1.0, -1.0),
            FinishReason.STOP,
            4,
            0.5,
            ((4, 0, 1), (5, 1, 2)),
        )
        for sample in range(2)
    ]
    with pytest.raises(RuntimeError, match=r"mixes policy versions \[4, 5\]"):
        split_groups(interrupted, 2)
    assert split_groups(interrupted, 2, allow_mixed_versions=True) == [interrupted]
