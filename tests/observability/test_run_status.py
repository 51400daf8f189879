"""The two lines of a run's status say where it is, how well it does, and how long it takes."""

import pytest

from megatron_prime.observability import activity, heartbeat, run_status
from megatron_prime.observability.activity import ENGINE, QUEUE, VERIFIER, worker
from megatron_prime.observability.run_status import RunStatus, curve, duration, progress_bar, work_text

LABELS = {"rollout/accuracy_sampled": "accuracy", "prm/sign_accuracy": "PRM accuracy"}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Replace the clock by one that the test sets, and forget other tests' workers."""
    now = [1000.0]
    monkeypatch.setattr(run_status.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(activity, "_workers", {})
    return now


def after_steps(clock, accuracies, seconds=10.0) -> RunStatus:
    status = RunStatus("prime", 100, 40, LABELS)
    for accuracy in accuracies:
        clock[0] += seconds
        metrics = {"rollout/accuracy_sampled": accuracy, "throughput/response_tokens_per_s": 12345.6}
        status.step_done({**metrics, "prm/sign_accuracy": 0.7})
    return status


def test_the_lines_show_steps_rest_phase_accuracy_trend_and_speed(clock):
    status = after_steps(clock, [0.2] * 5 + [0.3] * 5)
    with heartbeat.phase("weight_sync"):
        status.lines(79)
        clock[0] += 7
        first, second = status.lines(79)
    assert first.startswith("prime  step 50/100  ━") and first.endswith("  8:20 min left  weight sync 7 s")
    assert len(first) <= 79
    assert second == "accuracy 0.3 ↑ +0.100  PRM accuracy 0.7  12,346 tokens/s  10 s/step"


@pytest.mark.parametrize(
    ("accuracies", "trend"),
    [
        ([0.5], "accuracy 0.5  PRM"),
        ([0.5, 0.4], "accuracy 0.4 ↓ -0.100"),
        ([0.5, 0.5], "accuracy 0.5 → +0.000"),
        ([0.1] * 20 + [0.2] * 5, "accuracy 0.2 ↑ +0.100"),
        ([0.5, float("nan"), 0.6], "↑ +0.100"),
    ],
)
def test_the_trend_compares_the_last_steps_with_those_before(clock, accuracies, trend):
    assert trend in after_steps(clock, accuracies).lines(80)[1]


def test_a_wide_terminal_shows_a_curve(clock):
    status = after_steps(clock, [0.0, 0.5, 1.0])
    assert "▁▅█" in status.lines(200)[1] and "█" not in status.lines(80)[1]


def test_before_the_first_step_nothing_is_invented(clock):
    first, second = RunStatus("prime", 6, 0, LABELS).lines(80)
    assert "left" not in first and "step 0/6" in first
    assert second == "the first step of this attempt is under way"


def test_a_narrow_terminal_loses_the_bar_first(clock):
    first, _ = after_steps(clock, [0.1]).lines(40)
    assert "━" not in first and "step 41/100" in first


def test_the_work_of_a_phase_is_counted(clock):
    assert work_text() == ""
    engine, queue, verifier = worker("server 0", ENGINE), worker("queue", QUEUE), worker("verifier", VERIFIER)
    queue.submit(8)
    queue.begin(4)
    engine.begin(4)
    queue.end()
    assert work_text() == "sampled 1/8"
    verifier.submit(3)
    assert work_text() == "sampled 1/8, verified 0/3"
    queue.end(3)
    queue.begin(4)
    queue.end(4)
    engine.end(4)
    assert work_text() == "verified 0/3"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599, "59:59 min"), (3600, "1:00 h"), (7500, "2:05 h"),
        (86_399, "1 d 0 h"), (100_000, "1 d 4 h"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_people_read_it(seconds, text):
    assert duration(seconds) == text


def test_bars_and_curves_have_one_character_for_each_column_or_value():
    assert (
        progress_bar(1, 4, 8) == "━━──────"
        and progress_bar(9, 4, 4) == "━━━━"
        and progress_bar(0, 0, 3) == "━━━"
    )
    assert curve([0.3, 0.3]) == "▁▁" and curve([0, 7]) == "▁█"
