import math
import time

import pytest

from megatron_prime.observability.metrics import Metrics, phase_fractions, process_memory
from tests.support.metric_names import undocumented


def test_metrics_are_floats_in_insertion_order():
    metrics = Metrics({"policy/loss": 1})
    metrics["eval/accuracy_by_source/AIME 24"] = True
    metrics["policy/loss"] = 2
    assert list(metrics.items()) == [("policy/loss", 2.0), ("eval/accuracy_by_source/AIME 24", 1.0)]
    assert all(type(value) is float for value in metrics.values())
    del metrics["policy/loss"]
    assert len(metrics) == 1
    assert repr(metrics) == "Metrics({'eval/accuracy_by_source/AIME 24': 1.0})"


def test_a_group_is_added_under_its_name():
    metrics = Metrics()
    metrics.add("prm", {"loss": 0.69, "grad_norm": math.nan})
    assert list(metrics) == ["prm/loss", "prm/grad_norm"]


@pytest.mark.parametrize("name", ["loss", "Policy/loss", "policy/", "/loss", "policy loss/x", ""])
def test_names_must_have_a_group(name):
    with pytest.raises(ValueError, match="group/quantity"):
        Metrics()[name] = 1.0


def test_a_phase_timer_accumulates_and_includes_a_phase_that_raises():
    metrics = Metrics()
    with metrics.timed("rollout"):
        time.sleep(0.02)
    first = metrics["time/rollout_s"]
    with pytest.raises(RuntimeError), metrics.timed("rollout"):
        time.sleep(0.02)
        raise RuntimeError
    assert 0.02 <= first < metrics["time/rollout_s"]
    assert metrics["time/rollout_s"] >= 0.04


def test_a_phase_timer_waits_for_the_device_at_both_ends():
    calls = []
    with Metrics().timed("policy", synchronize=lambda: calls.append(len(calls))):
        assert calls == [0]
    assert calls == [0, 1]


def test_memory_is_measured_in_gib():
    memory = process_memory()
    assert 0.005 < memory["memory/rss_gib"] < 64
    assert memory["memory/rss_gib"] <= memory["memory/peak_rss_gib"] * 1.01


def test_device_memory_comes_from_the_caller():
    memory = process_memory(lambda: {"peak_allocated": 2.0**31})
    assert memory["memory/device_peak_allocated_gib"] == 2.0


def test_the_shares_of_the_phases_and_of_the_rest_add_up_to_one():
    metrics = Metrics(
        {"time/rollout_s": 6.0, "time/prm_s": 1.0, "time/step_s": 10.0, "rollout/num_prompts": 4.0}
    )
    shares = phase_fractions(metrics)
    assert shares == pytest.approx(
        {"time/rollout_fraction": 0.6, "time/prm_fraction": 0.1, "time/other_fraction": 0.3}
    )
    assert undocumented(shares) == []
    assert phase_fractions({"time/step_s": 0.0}) == {}
