"""Alarms ring at spikes and collapses, once an episode, and go on exactly after a resume."""

import json
import math

import pytest

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarms import ENTROPY, REWARD, Alarms

CALM = [1.0, 1.1, 0.9, 1.05, 0.95]


def alarms(**settings) -> Alarms:
    return Alarms(GuardsConfig(**{"alarm_window": 10, "spike_metrics": ("prm/loss",)} | settings))


def listen(listener: Alarms, metric: str, values) -> tuple[list[int], list[int]]:
    """Places where the metric's flag is up, and places of warnings."""
    ringing, warned = [], []
    for place, value in enumerate(values):
        flags, warnings = listener.look({metric: value})
        assert set(flags) == {"spike_alarm", "reward_alarm", "entropy_alarm"}
        ringing += [place] * int(sum(flags.values()))
        warned += [place] * len(warnings)
    return ringing, warned


def test_a_spike_rings_and_warns_once_an_episode():
    values = [*CALM, 9.0, 9.5, 1.0, 1.1, 9.0]
    assert listen(alarms(), "prm/loss", values) == ([5, 6, 9], [5, 9])


def test_noise_a_quiet_history_and_a_short_one_do_not_ring():
    assert listen(alarms(), "prm/loss", [*CALM, 1.15, 0.8, 1.2] * 3) == ([], [])
    assert listen(alarms(), "prm/loss", [1.0] * 8 + [1.9]) == ([], []), "less than twice the median"
    assert listen(alarms(), "prm/loss", [1.0, 1.0, 1.0, 1.0, 50.0]) == ([], []), "half a window is needed"


def test_a_level_that_stays_becomes_the_usual_one():
    ringing, warned = listen(alarms(), "prm/loss", [*CALM, *CALM, *[9.0, 9.1, 8.9, 9.2] * 3])
    assert warned == [10]
    assert ringing[-1] < 20


def test_values_that_are_not_finite_are_left_out():
    assert listen(alarms(), "prm/loss", [math.nan, *CALM, math.inf, 9.0]) == ([7], [7])


@pytest.mark.parametrize("metric", [REWARD, ENTROPY])
def test_a_collapse_rings_until_the_mean_is_back(metric):
    settings = {"alarm_window": 4, "reward_fraction": 0.5, "entropy_fraction": 0.5}
    values = [0.2, 0.2, 0.2, 0.2] + [0.6] * 4 + [0.1] * 4 + [0.6] * 4
    ringing, warned = listen(alarms(**settings), metric, values)
    # Means over four: 0.6 at place 7; below 0.3 from place 10 (0.225 + ...) on, back above it at place 13.
    means = [sum(values[place - 3 : place + 1]) / 4 for place in range(3, len(values))]
    assert ringing == [place + 3 for place, mean in enumerate(means) if mean < 0.3 and place > 4]
    assert warned == ringing[:1]


def test_a_reward_that_starts_low_has_not_collapsed():
    assert listen(alarms(alarm_window=4), REWARD, [0.0] * 10) == ([], [])


def test_a_fraction_of_0_switches_off():
    values = [0.9] * 10 + [0.0] * 20
    assert listen(alarms(reward_fraction=0.0), REWARD, values) == ([], [])


def test_a_resumed_alarm_continues_the_unbroken_one():
    values = [*CALM, 9.0, 9.5, 9.1, 1.0, 9.0]
    unbroken = listen(alarms(), "prm/loss", values)
    first, second = alarms(), alarms()
    listen(first, "prm/loss", values[:6])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    ringing, warned = listen(second, "prm/loss", values[6:])
    assert [place + 6 for place in ringing] == [place for place in unbroken[0] if place >= 6]
    assert [place + 6 for place in warned] == [9], "the episode that ran across the resume warns once"


def test_a_state_of_other_metrics_starts_anew():
    other = alarms(spike_metrics=("policy/grad_norm",))
    other.load_state_dict(alarms().state_dict())
    assert listen(other, "policy/grad_norm", [*CALM, 9.0]) == ([5], [5])
