"""Workers count what waits and runs, measure their busy time, and are recorded while someone asks for it."""

import threading
import time

import pytest

from megatron_prime.observability import activity, heartbeat
from megatron_prime.observability.activity import (
    ENGINE,
    ENVIRONMENT,
    QUEUE,
    VERIFIER,
    StepActivity,
    Worker,
    recorded,
    worker,
)


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    monkeypatch.setattr(activity, "_workers", {})


def state(each: Worker) -> tuple[int, int, int]:
    return each.pending, each.running, each.completed


def test_items_move_from_the_queue_to_work_and_are_completed():
    each = worker("engine", ENGINE)
    each.submit(5)
    each.begin(2)
    assert state(each) == (3, 2, 0)
    each.end()
    each.begin()
    each.withdraw(2)
    assert state(each) == (0, 2, 1)
    each.end(2)
    assert state(each) == (0, 0, 3)
    each.submit(1)
    assert state(each) == (1, 0, 0), "a new batch counts from 0"


def test_batches_count_while_they_are_worked_on_also_when_one_fails():
    each = worker("engine", ENGINE)
    seen = []
    with pytest.raises(ValueError, match="second"):
        for batch in each.each([[1, 2], [3], [4, 5]]):
            seen.append(state(each))
            if batch == [3]:
                raise ValueError("the second batch")
    assert seen == [(3, 2, 0), (2, 1, 2)]


def test_a_worker_is_busy_while_anything_runs():
    each = worker("engine", ENGINE)
    each.begin()
    each.begin()
    time.sleep(0.05)
    each.end()
    busy = each.usage.busy_s
    assert busy >= 0.05
    each.end()
    after = each.usage.busy_s
    time.sleep(0.02)
    assert each.usage.busy_s == after >= busy


def test_idle_fractions_are_means_over_the_workers_of_a_kind():
    one, _two, verifier = worker("one", ENGINE), worker("two", ENGINE), worker("verifier", VERIFIER)
    worker("queue", QUEUE)
    worker("environment", ENVIRONMENT)
    verifier.begin()
    idle = StepActivity()
    one.begin()
    time.sleep(0.05)
    fractions = idle.metrics()
    assert fractions["time/engine_idle_fraction"] == pytest.approx(0.5, abs=0.05)
    assert fractions["time/verifier_idle_fraction"] == pytest.approx(0.0, abs=0.05)
    assert fractions["time/environment_idle_fraction"] == 1.0
    timed = {name for name in fractions if name.startswith("time/")}
    assert timed == {f"time/{kind}_idle_fraction" for kind in ("engine", "environment", "verifier")}


def test_queues_and_responses_in_flight_are_means_over_the_time(monkeypatch):
    """Compared with the sums of waiting and running items, moment by moment, of a clock of the test."""
    now = [100.0]
    monkeypatch.setattr(activity.time, "perf_counter", lambda: now[0])
    one, two, queue = worker("one", ENGINE), worker("two", ENGINE), worker("queue", QUEUE)
    verifier = worker("verifier", VERIFIER)
    one.submit(9)
    one.begin(9)
    now[0] += 50
    one.end(9)
    measured = StepActivity()
    in_flight, waiting, judged = [], [], []
    changes = [
        (queue.submit, 4), (queue.begin, 3), (one.submit, 2), (one.begin, 2), (two.submit, 1), (verifier.submit, 5),
        (two.begin, 1), (one.end, 1), (verifier.begin, 2), (queue.withdraw, 1), (one.end, 1), (two.end, 1),
    ]  # fmt: skip
    for change, count in changes:
        change(count)
        now[0] += 2
        in_flight.append(one.running + two.running)
        waiting.append(queue.pending + one.pending + two.pending)
        judged.append(verifier.pending)
    metrics = measured.metrics()
    assert metrics["throughput/responses_in_flight"] == pytest.approx(sum(in_flight) / len(changes))
    assert metrics["throughput/requests_waiting"] == pytest.approx(sum(waiting) / len(changes))
    assert metrics["throughput/verifier_queue"] == pytest.approx(sum(judged) / len(changes))
    busy = [sum(1 for _ in range(*span)) for span in ((3, 10), (6, 11))]
    assert metrics["time/engine_idle_fraction"] == pytest.approx(1 - sum(busy) / 2 / len(changes))


def test_a_kind_without_workers_has_no_fraction():
    assert StepActivity().metrics() == {}


def test_a_recording_holds_the_phases_and_changes_of_its_time():
    each = worker("engine", ENGINE)
    each.submit(2)
    with heartbeat.phase("before"):
        pass
    with recorded() as record:
        with heartbeat.phase("step"), heartbeat.phase("rollout"):
            each.begin(2)
        each.end(2)
    each.submit(1)
    assert [span.name for span in record.spans] == ["rollout", "step"]
    inner, outer = record.spans
    assert (
        record.begin_ns <= outer.begin_ns <= inner.begin_ns <= inner.end_ns <= outer.end_ns <= record.end_ns
    )
    assert [(change.pending, change.running) for change in record.changes] == [(2, 0), (0, 2), (0, 0)]
    assert activity.recording() is None


def test_a_recording_is_bounded(monkeypatch):
    monkeypatch.setattr(activity, "MAX_CHANGES", 3)
    each = worker("engine", ENGINE)
    with recorded() as record:
        each.submit(9)
        for _ in range(9):
            each.begin()
    assert len(record.changes) == 3 and each.running == 9


def test_threads_share_a_worker():
    each = worker("verifier", VERIFIER)
    each.submit(4000)

    def work() -> None:
        for _ in range(1000):
            each.begin()
            each.end()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state(each) == (0, 0, 4000)
    assert worker("verifier", VERIFIER) is each
