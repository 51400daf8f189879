"""Cases in which each alarm on process rewards rings, and in which it must not."""

import json
import math
import random

import pytest

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarms import Alarms
from megatron_prime.training.health.credit_alarms import (
    PAIR_ACCURACY,
    PROCESS_SHARE,
    SCORE_LIMIT,
    SIGNS,
    STEP_AUROC,
    UNSEEN_PAIR_ACCURACY,
)


def alarms(**settings) -> Alarms:
    return Alarms(GuardsConfig(**settings))


def process_alarms(listener: Alarms, steps) -> tuple[list[int], list[str]]:
    """Return the indices of the steps (pair accuracy, share) at which the alarm rings, and its warnings."""
    ringing, warnings = [], []
    for place, (accuracy, share) in enumerate(steps):
        flags, texts = listener.look({PAIR_ACCURACY: accuracy, PROCESS_SHARE: share})
        assert sum(flags.values()) == flags["process_alarm"]
        ringing += [place] * int(flags["process_alarm"])
        warnings += texts
    return ringing, warnings


# The first 30 steps of the collapse in benchmarks/reward_hacking.py: the accuracy of the samples is 0.2 until step 23,
# and 0.03 ten steps later.
COLLAPSE = [
    0.5,
    0.41,
    0.78,
    0.43,
    0.46,
    0.56,
    0.6,
    0.6,
    0.33,
    0.58,
    0.55,
    0.38,
    0.29,
    0.49,
    0.37,
    0.47,
    0.37,
    0.38,
    0.68,
]
COLLAPSE += [0.58, 0.38, 0.42, 0.22, 0.56, 0.23, 0.58, 0.41, 0.24, 0.15, 0.24]


@pytest.mark.parametrize(
    ("steps", "ringing"),
    [
        ([(0.4, 0.5)] * 9, []),  # the window is not full
        ([(0.4, 0.5)] * 12, [9, 10, 11]),
        ([(0.4, 0.2)] * 30, []),  # process rewards of little weight
        ([(0.5, 0.5)] * 30, []),  # a PRM at chance, as at the start
        ([(0.8, 0.2)] * 10 + [(0.4, 0.5)] * 20, list(range(19, 30))),
        ([(0.4, 0.5)] * 10 + [(0.9, 0.5)] * 20, [9, 10]),
        ([(0.4, 0.5)] * 9 + [(math.nan, 0.5), (0.4, 0.5)], [10]),  # a step without a pair is left out
        ([(0.4, 0.5)] * 9 + [(0.4, 0.2)] * 10 + [(0.4, 0.5)], [19]),
        ([(0.0, 1.0)] * 10, [9]),
        (list(zip(COLLAPSE, [0.0] + [0.4] * 29, strict=True)), list(range(12, 30))),
    ],
)
def test_process_rewards_that_do_not_prefer_right_responses_raise_an_alarm(steps, ringing):
    assert process_alarms(alarms(), steps)[0] == ringing
    assert process_alarms(alarms(min_pair_accuracy=0), steps) == ([], [])


def test_the_alarm_for_process_rewards_warns_once_and_says_how_to_fix_it():
    _, (warning,) = process_alarms(alarms(), [(0.42, 0.5)] * 20)
    for part in (
        "in 42% of the cases only",
        "guards.min_pair_accuracy = 0.5",
        "advantage.process_trust",
        "filter.enabled",
    ):
        assert part in warning


def noisy(mean, spread, number=40, seed=0):
    rng = random.Random(seed)
    return [rng.gauss(mean, spread) for _ in range(number)]


def listen(flag, steps, **settings):
    """Return the indices of the steps (their metrics) at which the flag is set, and the warnings."""
    listener, ringing, warnings = alarms(**settings), [], []
    for place, metrics in enumerate(steps):
        # A resume after every step must change nothing.
        state, listener = listener.state_dict(), alarms(**settings)
        listener.load_state_dict(json.loads(json.dumps(state)))
        flags, texts = listener.look(metrics)
        assert sum(flags.values()) == flags[flag], "no other alarm is concerned"
        ringing += [place] * int(flags[flag])
        warnings += texts
    return ringing, warnings


def series(values, metric, share=0.5, **others):
    return [{metric: value, PROCESS_SHARE: share} | others for value in values]


LAST, LENGTH, FORMAT = SIGNS
CASES = {
    # A PRM at chance, with the noise of a few dozen pairs a step; one that knows something; one that learns.
    "chance": ("chance_alarm", series([0.5] * 12, UNSEEN_PAIR_ACCURACY), [9, 10, 11]),
    "chance with noise": ("chance_alarm", series([0.44, 0.58] * 6, UNSEEN_PAIR_ACCURACY), [9, 10, 11]),
    "worse than chance": ("chance_alarm", series([0.4] * 10, UNSEEN_PAIR_ACCURACY), [9]),
    "above chance": ("chance_alarm", series([0.56, 0.7] * 10, UNSEEN_PAIR_ACCURACY), []),
    "barely above chance": ("chance_alarm", series([0.53, 0.55] * 10, UNSEEN_PAIR_ACCURACY), []),
    "learns": ("chance_alarm", series([0.5, 0.52, 0.5, *[0.7] * 20], UNSEEN_PAIR_ACCURACY), []),
    "unlearns": ("chance_alarm", series([*[0.7] * 10, *[0.49] * 8], UNSEEN_PAIR_ACCURACY), []),
    "has unlearned": ("chance_alarm", series([*[0.7] * 10, *[0.49] * 10], UNSEEN_PAIR_ACCURACY), [18, 19]),
    "chance, small share": ("chance_alarm", series([0.5] * 30, UNSEEN_PAIR_ACCURACY, share=0.2), []),
    "chance during warm-up": ("chance_alarm", series([0.5] * 30, UNSEEN_PAIR_ACCURACY, share=0.0), []),
    "steps without pairs": (
        "chance_alarm",
        series([*[0.5] * 9, math.nan, math.nan, 0.5], UNSEEN_PAIR_ACCURACY),
        [11],
    ),
    "end": ("last_step_alarm", series([0.9] * 11, LAST.metric, **{LAST.chance: 0.1}), [9, 10]),
    "end, few steps": ("last_step_alarm", series([0.6] * 20, LAST.metric, **{LAST.chance: 0.4}), []),
    "end at times": ("last_step_alarm", series([0.3, 0.6] * 10, LAST.metric, **{LAST.chance: 0.1}), []),
    "end, small share": ("last_step_alarm", series([0.9] * 20, LAST.metric, 0.1, **{LAST.chance: 0.1}), []),
    "long": ("length_alarm", series([0.8] * 10, LENGTH.metric), [9]),
    "short": ("length_alarm", series([-0.8] * 10, LENGTH.metric), [9]),
    "length of few responses": ("length_alarm", series(noisy(0.0, 0.3), LENGTH.metric), []),
    "format": ("format_alarm", series([0.9] * 10, FORMAT.metric, **{FORMAT.chance: 0.2}), [9]),
    "format has most tokens": ("format_alarm", series([0.9] * 20, FORMAT.metric, **{FORMAT.chance: 0.5}), []),
    "format as its share": ("format_alarm", series([0.3] * 20, FORMAT.metric, **{FORMAT.chance: 0.3}), []),
    "no reward at all": ("format_alarm", series([math.nan] * 20, FORMAT.metric, **{FORMAT.chance: 0.3}), []),
    "small beta": ("beta_alarm", series([0.15, 0.16], SCORE_LIMIT, share=0.0), [0, 1]),
    "beta": ("beta_alarm", series([4.0, 3.5, 3.0], SCORE_LIMIT), []),
    "a short batch": ("beta_alarm", series([4.0, 0.5, 4.0], SCORE_LIMIT), []),
    "the policy gets sure": ("beta_alarm", series([2.0, 1.0, 0.8, 0.6, 0.5, 0.4], SCORE_LIMIT), [4, 5]),
    "wrong steps": ("probe_alarm", [{STEP_AUROC: value} for value in (0.3, 0.35, 0.3)], [2]),
    "steps by chance": ("probe_alarm", [{STEP_AUROC: value} for value in (0.5, 0.46, 0.52, 0.44)], []),
    "right steps": ("probe_alarm", [{STEP_AUROC: value} for value in (0.5, 0.3, 0.6, 0.8)], []),
    "between probes": (
        "probe_alarm",
        [{STEP_AUROC: 0.3}, {}, {}, {STEP_AUROC: 0.3}, {}, {STEP_AUROC: 0.3}],
        [5],
    ),
}
"""Name -> flag, metrics of each step, and the steps at which it rings."""
ADVICE = {
    "chance_alarm": ("advantage.process_trust", "advantage.process_warmup_steps", "prm.path"),
    "last_step_alarm": ("prm.granularity = 'step'", "megatron-prime view"),
    "length_alarm": ("'sequence_spread'", "'ce_intercept'"),
    "format_alarm": ("prm.granularity = 'step'",),
    "beta_alarm": ("raise prm.beta by a factor of about",),
    "probe_alarm": ("prm.probe", "prm.path"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_alarm_rings_in_these_steps_alone_and_warns_once(name):
    flag, steps, expected = CASES[name]
    ringing, warnings = listen(flag, steps)
    assert ringing == expected
    assert len(warnings) == bool(expected)
    for warning in warnings:
        assert all(part in warning for part in ADVICE[flag])


def test_every_alarm_has_a_case_in_which_it_rings_and_one_in_which_it_does_not():
    for flag in ADVICE:
        assert {bool(expected) for of, _, expected in CASES.values() if of == flag} == {True, False}


def test_the_factor_of_beta_brings_the_limit_to_four():
    _, (warning,) = listen("beta_alarm", [{SCORE_LIMIT: 0.16}])
    assert "factor of about 25" in warning
    _, (warning,) = listen("beta_alarm", [{SCORE_LIMIT: 0.0}])
    assert "factor" not in warning


def test_alarms_of_pair_accuracy_can_be_switched_off():
    assert listen("chance_alarm", series([0.4] * 20, UNSEEN_PAIR_ACCURACY), min_pair_accuracy=0.0) == ([], [])


def test_a_run_without_a_prm_has_no_alarm_for_process_rewards():
    assert listen("process_alarm", [{PAIR_ACCURACY: 0.0}] * 20) == ([], [])
