"""The log-prob mismatch of trainer and engine: its value, its alarm once per episode, and the advice in the warning."""

import math

import pytest
import torch

from megatron_prime.training.health.mismatch import Mismatch, MismatchAlarm
from tests.support.toy_runs import Toy, records

FINE, BAD = Mismatch(0.01, 2.0), Mismatch(1.5, 9.0)


def test_mean_and_max_are_over_response_tokens_only():
    old = torch.tensor([[-1.0, -2.0, 50.0], [-3.0, 70.0, 70.0]])
    rollout = torch.tensor([[-1.5, -1.75, 0.0], [-3.0, 0.0, math.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert Mismatch.of(old, rollout, mask) == Mismatch(0.25, 0.5)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_log_prob_that_is_not_finite_is_reported_and_alarms(number):
    mismatch = Mismatch.of(
        torch.zeros(1, 2), torch.tensor([[0.0, -number]]), torch.ones(1, 2, dtype=torch.bool)
    )
    assert not math.isfinite(mismatch.max)
    assert MismatchAlarm(1.0, None).look(mismatch, 1) is not None


def test_each_episode_warns_once():
    alarm = MismatchAlarm(1.0, None)
    warned = [
        alarm.look(mismatch, step) is not None for step, mismatch in enumerate([FINE, BAD, BAD, FINE, BAD])
    ]
    assert warned == [False, True, False, False, True]
    assert alarm.is_on


def test_the_threshold_itself_is_no_alarm():
    assert MismatchAlarm(1.5, None).look(BAD, 1) is None


def test_the_warning_says_how_to_fix_it():
    warning = MismatchAlarm(1.0, None).look(BAD, 7)
    for part in (
        "step 7",
        "1.5 nats",
        "9 at most",
        "rollout.logprob_alarm = 1",
        "policy.tis_cap = 2.0",
        "checkpoint before it",
    ):
        assert part in warning
    assert "policy.tis_cap corrects" in MismatchAlarm(1.0, 3.0).look(BAD, 7)


def test_every_step_logs_a_mismatch_that_is_small_with_the_local_engine(toy: Toy):
    steps = [record for record in records(toy.run_dir("single")) if record["step"] > 0]
    assert len(steps) == 4
    for record in steps:
        assert 0 < record["rollout/logprob_gap"] <= record["rollout/logprob_gap_max"] < 1e-3
        assert record["rollout/logprob_gap_alarm"] == 0


def test_stale_weights_in_the_engine_raise_the_alarm(stale_step):
    metrics = stale_step["metrics"]
    assert metrics["rollout/logprob_gap"] == pytest.approx(stale_step["expected_mean"], rel=1e-4)
    assert metrics["rollout/logprob_gap_alarm"] == 1
    (warning,) = stale_step["warnings"]
    assert "stale or broken weight sync" in warning
