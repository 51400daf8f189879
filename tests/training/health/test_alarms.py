"""Alarms fire at spikes and collapses, warn once per episode, and keep their state across a resume."""

import json
import math

import pytest

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarms import (
    ENTROPY,
    GAP,
    REF_KL,
    REWARD,
    TRUNCATION,
    Alarms,
)
from megatron_prime.training.health.credit_alarms import credit_alarms

CREDIT_FLAGS = credit_alarms(GuardsConfig())
CALM = [1.0, 1.1, 0.9, 1.05, 0.95]


def alarms(**settings) -> Alarms:
    return Alarms(GuardsConfig(**{"alarm_window": 10, "spike_metrics": ("prm/loss",)} | settings))


def listen(listener: Alarms, metric: str, values) -> tuple[list[int], list[int]]:
    """Return the indices of values at which the flag is set, and those at which a warning is given."""
    ringing, warned = [], []
    for place, value in enumerate(values):
        flags, warnings = listener.look({metric: value})
        assert set(flags) == {
            "spike_alarm",
            "reward_alarm",
            "entropy_alarm",
            "truncation_alarm",
            "ref_kl_alarm",
            "gap_alarm",
            *CREDIT_FLAGS,
        }
        ringing += [place] * int(sum(flags.values()))
        warned += [place] * len(warnings)
    return ringing, warned


def test_a_spike_fires_and_warns_once_per_episode():
    values = [*CALM, 9.0, 9.5, 1.0, 1.1, 9.0]
    assert listen(alarms(), "prm/loss", values) == ([5, 6, 9], [5, 9])


def test_noise_and_a_constant_or_short_history_do_not_fire():
    assert listen(alarms(), "prm/loss", [*CALM, 1.15, 0.8, 1.2] * 3) == ([], [])
    assert listen(alarms(), "prm/loss", [1.0] * 8 + [1.9]) == ([], []), "less than twice the median"
    assert listen(alarms(), "prm/loss", [1.0, 1.0, 1.0, 1.0, 50.0]) == ([], []), "half a window is needed"


def test_a_lasting_new_level_becomes_the_baseline():
    ringing, warned = listen(alarms(), "prm/loss", [*CALM, *CALM, *[9.0, 9.1, 8.9, 9.2] * 3])
    assert warned == [10]
    assert ringing[-1] < 20


def test_values_that_are_not_finite_are_ignored():
    assert listen(alarms(), "prm/loss", [math.nan, *CALM, math.inf, 9.0]) == ([7], [7])


@pytest.mark.parametrize("metric", [REWARD, ENTROPY])
def test_a_collapse_fires_until_the_mean_recovers(metric):
    settings = {"alarm_window": 4, "reward_fraction": 0.5, "entropy_fraction": 0.5}
    values = [0.2, 0.2, 0.2, 0.2] + [0.6] * 4 + [0.1] * 4 + [0.6] * 4
    ringing, warned = listen(alarms(**settings), metric, values)
    # Means over four values: 0.6 at index 7; below 0.3 from index 10 on, and above it again at index 13.
    means = [sum(values[place - 3 : place + 1]) / 4 for place in range(3, len(values))]
    assert ringing == [place + 3 for place, mean in enumerate(means) if mean < 0.3 and place > 4]
    assert warned == ringing[:1]


def test_a_reward_that_starts_low_has_not_collapsed():
    assert listen(alarms(alarm_window=4), REWARD, [0.0] * 10) == ([], [])


def test_a_fraction_of_0_disables_the_alarm():
    values = [0.9] * 10 + [0.0] * 20
    assert listen(alarms(reward_fraction=0.0), REWARD, values) == ([], [])


def test_a_resumed_alarm_equals_an_uninterrupted_one():
    values = [*CALM, 9.0, 9.5, 9.1, 1.0, 9.0]
    unbroken = listen(alarms(), "prm/loss", values)
    first, second = alarms(), alarms()
    listen(first, "prm/loss", values[:6])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    ringing, warned = listen(second, "prm/loss", values[6:])
    assert [place + 6 for place in ringing] == [place for place in unbroken[0] if place >= 6]
    assert [place + 6 for place in warned] == [9], "the episode that spans the resume warns once"


def test_a_saved_state_of_other_metrics_is_ignored():
    other = alarms(spike_metrics=("policy/grad_norm",))
    other.load_state_dict(alarms().state_dict())
    assert listen(other, "policy/grad_norm", [*CALM, 9.0]) == ([5], [5])


@pytest.mark.parametrize(
    ("metric", "values", "ringing", "warned"),
    [
        (TRUNCATION, [0.82, 0.82, 0.82], [0, 1, 2], [0]),
        (TRUNCATION, [0.3, 0.5, 0.5, 0.4], [], []),
        (TRUNCATION, [0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9], [7, 8], [7]),
        (TRUNCATION, [0.82, 0.0, 0.0, 0.82, 0.82, 0.82, 0.82], [0, 6], [0, 6]),
        (REF_KL, [0.01, 0.1, 0.5, 1.0, 2.0, 4.0], [5], [5]),
        (REF_KL, [0.0] * 30, [], []),
    ],
)
def test_a_metric_that_runs_away_warns_once(metric, values, ringing, warned):
    assert listen(alarms(), metric, values) == (ringing, warned)
    assert listen(alarms(max_truncated_fraction=0, max_ref_kl=0), metric, values) == ([], [])


@pytest.mark.parametrize(
    ("values", "ringing"),
    [
        ([0.001, 0.001, 0.001, 0.1], [3]),  # the weights of a restarted server: 0.1 to 0.4 nats
        ([0.002, 0.01, 0.003, 0.02, 0.4, 0.01, 0.3], [4, 6]),
        ([0.02, 0.03, 0.02, 0.09, 0.04, 0.05], []),  # a mixture of experts in bf16 without replayed experts
        ([1e-7, 1e-7, 1e-7, 0.019], []),  # rounding
        ([0.01, 0.012, 0.02, 0.03, 0.05, 0.08], []),  # slow growth
        ([0.3, 0.3, 0.3, 0.3], []),
        ([0.001, 0.3], []),  # no history yet, so the fixed limit alone counts
        ([1.5, 0.01, 1.0, 1.0], [0]),
        ([0.001, math.nan, 0.001, 0.001, 0.1, math.inf], [1, 4, 5]),
        ([0.001] * 10 + [0.1] * 10, list(range(10, 15))),  # a level that stays becomes the usual one
    ],
)
def test_a_gap_of_log_probs_is_compared_with_a_limit_and_with_its_own_history(values, ringing):
    assert listen(alarms(), GAP, values)[0] == ringing


def test_the_warning_of_a_gap_says_how_to_fix_it():
    _, (warning,) = alarms().look({GAP: 1.5})
    for part in (
        "1.5 nats",
        "guards.max_logprob_gap = 1",
        "policy.correction = 'token'",
        "checkpoint before it",
    ):
        assert part in warning
