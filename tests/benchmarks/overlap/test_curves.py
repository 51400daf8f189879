"""Learning curves are compared seed by seed."""

from benchmarks.overlap.curves import is_done, table


def runs(schedule, *finals):
    return [
        {
            "schedule": schedule,
            "seed": seed,
            "accuracy": [0.2] * 8 + [final] * 8,
            "evaluations": [0.1, final + 0.05],
        }
        for seed, final in enumerate(finals)
    ]


def test_the_table_has_means_and_the_interval_of_the_paired_difference():
    records = runs("on-policy", 0.5, 0.7, 0.6) + runs("one step off", 0.6, 0.8, 0.7)
    header, _, first, second, difference = table(records).splitlines()
    assert "(3 seeds)" in header
    assert first == "| on-policy | 0.400 | 0.600 | 0.650 |"
    assert second == "| one step off | 0.450 | 0.700 | 0.750 |"
    assert difference == "| difference | +0.050 ± 0.000 | +0.100 ± 0.000 | +0.100 ± 0.000 |"


def test_only_seeds_with_both_runs_count():
    records = runs("on-policy", 0.5, 0.7) + runs("one step off", 0.6)
    assert "(1 seeds)" in table(records)
    assert table(runs("on-policy", 0.5)) == ""
    assert is_done(records, "on-policy", 1) and not is_done(records, "one step off", 1)
