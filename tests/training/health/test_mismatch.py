"""The log-prob mismatch of trainer and engine: its value, and the alarm on stale weights."""

import math

import pytest
import torch

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarms import GAP, Alarms
from megatron_prime.training.health.mismatch import Mismatch
from tests.support.toy_runs import Toy, records


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
    flags, (warning,) = Alarms(GuardsConfig()).look({GAP: mismatch.mean})
    assert flags["gap_alarm"] == 1
    assert "not finite" in warning


def test_every_step_logs_a_mismatch_that_is_small_with_the_local_engine(toy: Toy):
    steps = [record for record in records(toy.run_dir("single")) if record["step"] > 0]
    assert len(steps) == 4
    for record in steps:
        assert 0 < record["rollout/logprob_gap"] <= record["rollout/logprob_gap_max"] < 1e-3
        assert record["guards/gap_alarm"] == 0


@pytest.mark.parametrize("usual", [1e-4, 0.01])
def test_stale_weights_in_the_engine_raise_the_alarm_by_the_history_of_the_run(stale_step, usual):
    metrics = stale_step["metrics"]
    assert metrics["rollout/logprob_gap"] == pytest.approx(stale_step["expected_mean"], rel=1e-4)
    alarms = Alarms(GuardsConfig(max_logprob_gap=100.0))
    for _ in range(3):
        assert alarms.look({GAP: usual})[1] == []
    flags, (warning,) = alarms.look({GAP: metrics[GAP]})
    assert flags["gap_alarm"] == 1
    assert "stale or broken weight sync" in warning
