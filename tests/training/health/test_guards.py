"""Guards count, stop and report; test_trainable.py checks that a skipped update changes nothing."""

import json

import pytest

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.training.health.alarms import TRUNCATION
from megatron_prime.training.health.guards import (
    RECENT_STEPS,
    EndlessResponsesError,
    Guards,
    MisleadingRewardsError,
)
from megatron_prime.training.health.not_finite import Findings, SkippedUpdate
from tests.support.toy_runs import Toy, finish

BROKEN = {
    role: SkippedUpdate(role, float("nan"), [Findings(0, [3], 1, ["layer.weight"], 0, [])])
    for role in ("policy", "prm")
}


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def guards(tmp_path, warnings):
    return Guards(GuardsConfig(max_skipped_in_a_row=2), tmp_path, True, warnings.append)


def test_skipped_updates_are_counted_per_role_across_steps(guards, warnings):
    guards.begin_step(1)
    guards.skipped(BROKEN["policy"])
    guards.skipped(BROKEN["prm"])
    assert guards.end_step({})["num_skipped_updates"] == 2
    guards.begin_step(2)
    guards.stepped("policy")
    guards.skipped(BROKEN["policy"])
    with pytest.raises(FloatingPointError, match="step 2, minibatch 1: 2 updates of the prm in a row"):
        guards.skipped(BROKEN["prm"])
    assert warnings[-1].startswith("step 2, minibatch 2: the policy's update is skipped")


def test_metrics_of_a_step_count_the_step_and_the_run(guards):
    for step, is_broken in enumerate((True, False, True), start=1):
        guards.begin_step(step)
        guards.skipped(BROKEN["policy"]) if is_broken else guards.stepped("policy")
        added = guards.end_step({"rollout/accuracy_sampled": 0.5})
        assert added["num_skipped_updates"] == float(is_broken)
    assert added["num_skipped_in_all"] == 2


def test_a_report_contains_the_latest_metrics(tmp_path, guards):
    for step in range(1, 15):
        guards.begin_step(step)
        guards.end_step({"prm/loss": step / 2, "policy/kl": float("inf")})
    guards.begin_step(15)
    guards.skipped(BROKEN["policy"])
    with pytest.raises(FloatingPointError, match=r"reports/not_finite_step_00000015\.json"):
        guards.skipped(BROKEN["policy"])
    report = json.loads((tmp_path / "reports" / "not_finite_step_00000015.json").read_text())
    assert [record["step"] for record in report["recent_metrics"]] == [*range(15 - RECENT_STEPS, 15)]
    assert report["recent_metrics"][-1] == {"step": 14, "prm/loss": 7.0, "policy/kl": None}
    assert report["by_rank"][0]["gradients"] == ["layer.weight"]
    assert report["skipped_in_a_row"] == 2


def test_only_the_writing_rank_writes(tmp_path):
    guards = Guards(GuardsConfig(max_skipped_in_a_row=1), tmp_path, False, print)
    with pytest.raises(FloatingPointError):
        guards.skipped(BROKEN["policy"])
    assert not any(tmp_path.iterdir())


def test_a_resumed_run_continues_the_count(tmp_path, guards):
    guards.begin_step(1)
    guards.skipped(BROKEN["policy"])
    guards.end_step({})
    resumed = Guards(GuardsConfig(max_skipped_in_a_row=2), tmp_path, True, print)
    resumed.load_state_dict(json.loads(json.dumps(guards.state_dict())))
    resumed.begin_step(2)
    with pytest.raises(FloatingPointError, match="2 updates of the policy in a row"):
        resumed.skipped(BROKEN["policy"])


def test_an_empty_state_resets_the_count(guards):
    guards.load_state_dict({})
    assert guards.end_step({})["num_skipped_in_all"] == 0


def test_a_run_whose_weights_blow_up_stops_with_a_report(toy: Toy, tmp_path):
    """With a huge learning rate, the first update makes the weights overflow, and the next ones are skipped."""
    run_dir = tmp_path / "run"
    finished = finish(
        toy.folder,
        "train",
        "run.toml",
        f"run_dir={run_dir}",
        "policy.lr=1e30",
        "policy.num_epochs=3",
        "data.evaluation=[]",
    )
    assert finished.returncode == 1
    assert "step 1, minibatch 2: the policy's update is skipped" in finished.stdout
    assert "step 1, minibatch 4: 3 updates of the policy in a row were not finite" in finished.stderr
    report = json.loads((run_dir / "reports" / "not_finite_step_00000001.json").read_text())
    assert report["role"] == "policy"


def steps_with(guards, *fractions):
    for step, fraction in enumerate(fractions, start=1):
        guards.begin_step(step)
        guards.check_endings({TRUNCATION: fraction})


def test_steps_without_a_single_ended_response_warn_once_in_a_row(guards, warnings):
    steps_with(guards, 1.0, 1.0, 0.99, 1.0)
    assert [text.split(":")[0] for text in warnings] == ["step 1", "step 4"]
    assert "ALL RESPONSES WERE TRUNCATED" in warnings[0] and "end a response" in warnings[0]


def test_too_many_steps_without_an_ended_response_stop_the_run_if_asked(tmp_path, warnings):
    def limited():
        return Guards(GuardsConfig(max_truncated_steps=3), tmp_path, True, warnings.append)

    steps_with(limited(), 1.0, 1.0, 0.5, 1.0, 1.0)
    first = limited()
    steps_with(first, 1.0, 1.0)
    resumed = limited()
    resumed.load_state_dict(first.state_dict())
    with pytest.raises(
        EndlessResponsesError, match=r"last 3 steps was truncated .guards\.max_truncated_steps."
    ):
        steps_with(resumed, 1.0)


def alarming(guards, *flags):
    for step, flag in enumerate(flags, start=1):
        guards.begin_step(step)
        guards.check_process_rewards({"guards/process_alarm": flag})


def test_too_many_steps_with_misleading_process_rewards_stop_the_run_if_asked(tmp_path, guards, warnings):
    alarming(guards, *[1.0] * 50)

    def limited():
        return Guards(GuardsConfig(max_process_alarm_steps=3), tmp_path, True, warnings.append)

    alarming(limited(), 1.0, 1.0, 0.0, 1.0, 1.0)
    first = limited()
    alarming(first, 1.0, 1.0)
    resumed = limited()
    resumed.load_state_dict(first.state_dict())
    with pytest.raises(
        MisleadingRewardsError, match=r"3 steps .guards\.max_process_alarm_steps.*process_trust"
    ):
        alarming(resumed, 1.0)
