"""The statistics of a collection against counts by hand."""

import math
from dataclasses import replace

import pytest

from megatron_prime.rollout.collection_stats import (
    CollectionTally,
    accuracy_by_source,
    environment_stats,
    mean,
    rollout_stats,
)
from megatron_prime.rollout.group_filter import FilterDecision
from megatron_prime.types import FinishReason, Prompt, Rollout, Turn
from tests.rollout.test_collector import MIXED, make_collector
from tests.support.episodes import ScriptedEnvironments, echo
from tests.support.rollout_doubles import ScriptedEngine


def group(index, outcomes, source="", lengths=None, reason=FinishReason.STOP, version=3):
    prompt = Prompt(index, (1, 2), "7", source)
    lengths = lengths or [1] * len(outcomes)
    return [
        Rollout(prompt, sample, (5,) * length, (-0.5,) * length, reason, version, outcome)
        for sample, (outcome, length) in enumerate(zip(outcomes, lengths, strict=True))
    ]


KEPT = group(0, [1.0, 0.0], "algebra", [2, 4])
TRIMMED = group(1, [0.0, 1.0], "algebra")
EASY = group(2, [1.0, 1.0], "geometry", reason=FinishReason.LENGTH)
BROKEN = group(3, [math.nan, 1.0])


@pytest.fixture
def tally():
    decisions = [
        FilterDecision.KEPT,
        FilterDecision.TOO_EASY,
        FilterDecision.KEPT,
        FilterDecision.VERIFIER_ERROR,
    ]
    return CollectionTally([KEPT, EASY, TRIMMED, BROKEN], decisions)


def test_the_mean_ignores_nan():
    assert mean([1.0, math.nan, 0.0]) == 0.5
    assert math.isnan(mean([])) and math.isnan(mean([math.nan]))


def test_rollout_stats_are_length_and_truncation():
    stats = rollout_stats([*KEPT, *EASY])
    assert stats == {"truncated_fraction": 0.5, "mean_response_tokens": (2 + 4 + 1 + 1) / 4}


def test_statistics_of_environments_count_turns_and_what_the_policy_wrote():
    [two_turns, failed] = group(0, [1.0, 0.0], lengths=[7, 3])
    two_turns = replace(two_turns, turns=(Turn(2, 5), Turn(7, 7)))
    failed = replace(failed, num_failed_episodes=2)
    assert environment_stats([two_turns, failed]) == {
        "mean_turns": 1.5,
        "mean_policy_tokens": 3.5,
        "num_failed_episodes": 2,
    }


def test_a_collector_with_environments_passes_them_on_and_counts():
    engine, environments = ScriptedEngine(lambda index: MIXED), ScriptedEnvironments(echo(1))
    collector = make_collector(engine)
    assert "mean_turns" not in collector.collect(0).stats and engine.environments is None
    collector.environments = environments
    stats = collector.collect(1).stats
    assert engine.environments is environments
    assert (stats["mean_turns"], stats["mean_policy_tokens"]) == (1, 1.5)


def test_accuracy_by_source_ignores_verifier_errors_and_unnamed_sources():
    rollouts = [*KEPT, *EASY, *BROKEN]
    assert accuracy_by_source(rollouts) == {"algebra": 0.5, "geometry": 1.0}


def test_all_statistics_of_a_batch(tally):
    stats = tally.stats([KEPT])
    assert all(type(value) is float for value in stats.values())
    assert stats == {
        "num_prompts_sampled": 4,
        "num_rollouts_sampled": 8,
        "num_groups_kept": 1,
        "num_groups_dropped_aborted": 0,
        "num_groups_dropped_verifier_error": 1,
        "num_groups_dropped_truncated": 0,
        "num_groups_dropped_too_hard": 0,
        "num_groups_dropped_too_easy": 1,
        "num_groups_trimmed": 1,
        "num_verifier_errors": 1,
        "accuracy_sampled": pytest.approx((1 + 0 + 1 + 1 + 0 + 1 + 1) / 7),
        "accuracy_batch": 0.5,
        "truncated_fraction": 2 / 8,
        "mean_response_tokens": (2 + 4 + 6 * 1) / 8,
        "policy_version": 3,
        "accuracy_by_source/algebra": (1 + 0 + 0 + 1) / 4,
        "accuracy_by_source/geometry": 1.0,
    }


def test_the_policy_version_of_a_batch_is_its_oldest():
    older = group(4, [1.0, 0.0], version=1)
    tally = CollectionTally([KEPT, older], [FilterDecision.KEPT, FilterDecision.KEPT])
    assert tally.stats([KEPT, older])["policy_version"] == 1


def test_the_keep_rate_is_smoothed_and_never_zero(tally):
    assert CollectionTally([], []).keep_rate == 1.0
    assert tally.keep_rate == pytest.approx((2 + 1) / (4 + 1))


def test_the_explanation_has_counts_and_a_suggestion(tally):
    text = tally.explain()
    assert "4 prompts sampled: " in text
    assert "dropped_too_easy 1" in text
    assert "filter.max_prompts_factor" in text


@pytest.mark.parametrize(
    ("decision", "advice"),
    [
        (FilterDecision.TOO_HARD, "filter.accuracy_min"),
        (FilterDecision.TOO_EASY, "filter.accuracy_max"),
        (FilterDecision.TRUNCATED, "rollout.max_response_tokens"),
        (FilterDecision.VERIFIER_ERROR, "reward.timeout_s"),
        (FilterDecision.ABORTED, "engine: see its log"),
        (FilterDecision.KEPT, "Most were kept"),
    ],
)
def test_the_advice_follows_the_most_frequent_reason(decision, advice):
    rare = FilterDecision.TOO_EASY if decision is FilterDecision.TOO_HARD else FilterDecision.TOO_HARD
    others = [FilterDecision.KEPT] * 4 + [rare] * (decision is not FilterDecision.KEPT)
    decisions = [*others, decision, decision]
    tally = CollectionTally([KEPT] * len(decisions), decisions)
    assert advice in tally.explain()


def test_every_group_is_recorded_with_the_decision_on_it(tally):
    records = tally.records()
    assert [(index, decision) for index, _, decision in records] == [
        (0, "kept"),
        (2, "dropped_too_easy"),
        (1, "kept"),
        (3, "dropped_verifier_error"),
    ]
    assert [mean for _, mean, _ in records[:3]] == [0.5, 1.0, 0.5]
    assert math.isnan(records[3][1])
    assert (tally.num_kept, tally.num_all_right, tally.num_all_wrong) == (2, 1, 0)
    assert "25% all right, 0% all wrong" in tally.explain()
