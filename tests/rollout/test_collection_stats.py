"""The statistics of a collection against counts made by hand."""

import math

import pytest

from megatron_prime.rollout.collection_stats import CollectionTally, accuracy_by_source, mean, rollout_stats
from megatron_prime.rollout.group_filter import Verdict
from megatron_prime.types import FinishReason, Prompt, Rollout


def group(index, outcomes, source="", lengths=None, reason=FinishReason.STOP, version=3):
    prompt = Prompt(index, (1, 2), "7", source)
    lengths = lengths or [1] * len(outcomes)
    return [
        Rollout(prompt, sample, (5,) * length, (-0.5,) * length, reason, version, outcome)
        for sample, (outcome, length) in enumerate(zip(outcomes, lengths, strict=True))
    ]


KEPT = group(0, [1.0, 0.0], "algebra", [2, 4])
SURPLUS = group(1, [0.0, 1.0], "algebra")
EASY = group(2, [1.0, 1.0], "geometry", reason=FinishReason.LENGTH)
BROKEN = group(3, [math.nan, 1.0])


@pytest.fixture
def tally():
    tally = CollectionTally()
    tally.add_round([KEPT, EASY], [Verdict.KEPT, Verdict.TOO_EASY])
    tally.add_round([SURPLUS, BROKEN], [Verdict.KEPT, Verdict.VERIFIER_ERROR])
    return tally


def test_means_leave_nan_out():
    assert mean([1.0, math.nan, 0.0]) == 0.5
    assert math.isnan(mean([])) and math.isnan(mean([math.nan]))


def test_lengths_and_truncation():
    stats = rollout_stats([*KEPT, *EASY])
    assert stats == {"truncated_fraction": 0.5, "mean_response_tokens": (2 + 4 + 1 + 1) / 4}


def test_accuracy_by_source_leaves_errors_and_nameless_sources_out():
    rollouts = [*KEPT, *EASY, *BROKEN]
    assert accuracy_by_source(rollouts) == {"algebra": 0.5, "geometry": 1.0}


def test_the_stats_of_a_batch(tally):
    stats = tally.stats([KEPT], num_trimmed=0)
    assert all(type(value) is float for value in stats.values())
    assert stats == {
        "num_rounds": 2,
        "num_prompts_sampled": 4,
        "num_rollouts_sampled": 8,
        "num_groups_kept": 1,
        "num_groups_dropped_aborted": 0,
        "num_groups_dropped_verifier_error": 1,
        "num_groups_dropped_truncated": 0,
        "num_groups_dropped_too_hard": 0,
        "num_groups_dropped_too_easy": 1,
        "num_groups_surplus": 1,
        "num_groups_trimmed": 0,
        "num_verifier_errors": 1,
        "accuracy_before_filter": pytest.approx((1 + 0 + 1 + 1 + 0 + 1 + 1) / 7),
        "accuracy": 0.5,
        "truncated_fraction": 2 / 8,
        "mean_response_tokens": (2 + 4 + 6 * 1) / 8,
        "policy_version": 3,
        "accuracy_by_source/algebra": (1 + 0 + 0 + 1) / 4,
        "accuracy_by_source/geometry": 1.0,
    }


def test_a_group_is_trained_on_trimmed_or_surplus(tally):
    tally.add_round([KEPT], [Verdict.KEPT])
    stats = tally.stats([KEPT], num_trimmed=1)
    counts = [stats[f"num_groups_{fate}"] for fate in ("kept", "trimmed", "surplus")]
    assert counts == [1, 1, 1]
    assert sum(value for name, value in stats.items() if name.startswith("num_groups_")) == 5


def test_the_version_of_a_batch_is_its_oldest():
    older = group(4, [1.0, 0.0], version=1)
    tally = CollectionTally()
    tally.add_round([KEPT, older], [Verdict.KEPT, Verdict.KEPT])
    assert tally.stats([KEPT, older], num_trimmed=0)["policy_version"] == 1


def test_the_keep_rate_is_smoothed_and_never_zero(tally):
    assert CollectionTally().keep_rate == 1.0
    assert tally.keep_rate == pytest.approx((2 + 1) / (4 + 1))


def test_the_explanation_counts_and_says_how_to_mend(tally):
    text = tally.explain()
    assert "4 prompts sampled in 2 rounds" in text
    assert "dropped_too_easy 1" in text
    assert "filter.max_rounds" in text


@pytest.mark.parametrize(
    ("verdict", "knob"),
    [
        (Verdict.TOO_HARD, "filter.accuracy_min"),
        (Verdict.TOO_EASY, "filter.accuracy_max"),
        (Verdict.TRUNCATED, "rollout.max_response_tokens"),
        (Verdict.VERIFIER_ERROR, "reward.timeout_s"),
        (Verdict.ABORTED, "engine: see its log"),
        (Verdict.KEPT, "Most were kept"),
    ],
)
def test_the_explanation_follows_the_commonest_reason(verdict, knob):
    rare = Verdict.TOO_EASY if verdict is Verdict.TOO_HARD else Verdict.TOO_HARD
    others = [Verdict.KEPT] * 4 + [rare] * (verdict is not Verdict.KEPT)
    verdicts = [*others, verdict, verdict]
    tally = CollectionTally()
    tally.add_round([KEPT] * len(verdicts), verdicts)
    assert knob in tally.explain()


def test_every_group_is_recorded_with_its_verdict(tally):
    records = tally.records()
    assert [(index, verdict) for index, _, verdict in records] == [
        (0, "kept"),
        (2, "dropped_too_easy"),
        (1, "kept"),
        (3, "dropped_verifier_error"),
    ]
    assert [mean for _, mean, _ in records[:3]] == [0.5, 1.0, 0.5]
    assert math.isnan(records[3][1])
    assert (tally.num_kept, tally.num_all_right, tally.num_all_wrong) == (2, 1, 0)
    assert "25% all right, 0% all wrong" in tally.explain()
