"""Timelines are valid traces, alone and within a trace of torch.profiler."""

import json

import pytest

from megatron_prime.observability.activity import ENGINE, QUEUE, VERIFIER, Change, Recording, Span
from megatron_prime.observability.timeline import FIRST_PID, trace_events, write_timeline
from tests.support.trace_files import read_trace

MS = 1_000_000
BASE = 1_700_000_000_000_000_000


def recording() -> Recording:
    """Return a step of 100 ms whose engine has two servers, the second of which is never used."""
    spans = [Span("rollout", 10, 60), Span("policy", 60, 90), Span("step", 5, 95)]
    changes = [
        *((0, name, kind, 0, 0) for name, kind in (("one", ENGINE), ("two", ENGINE), ("verifier", VERIFIER))),
        (10, "queue", QUEUE, 4, 0),
        (12, "queue", QUEUE, 0, 4),
        (12, "one", ENGINE, 0, 2),
        (20, "one", ENGINE, 0, 1),
        (40, "one", ENGINE, 0, 0),
        (41, "verifier", VERIFIER, 1, 1),
        (50, "verifier", VERIFIER, 0, 0),
        (70, "one", ENGINE, 0, 1),
    ]
    return Recording(
        BASE,
        BASE + 100 * MS,
        [Span(span.name, BASE + span.begin_ns * MS, BASE + span.end_ns * MS) for span in spans],
        [Change(BASE + at * MS, *rest) for at, *rest in changes],
    )


def test_a_recording_alone_is_a_valid_trace_with_a_track_for_each_worker(tmp_path):
    path = tmp_path / "step.json.gz"
    write_timeline(path, recording(), rank=3)
    trace = read_trace(path)
    assert trace.processes == {FIRST_PID + 3: "megatron-prime, rank 3"}
    assert sorted(trace.threads.values()) == ["one", "phases", "two", "verifier"]
    assert [(event["name"], event["dur"]) for event in trace.track("phases")] == [
        ("step", 90_000), ("rollout", 50_000), ("policy", 30_000),
    ]  # fmt: skip
    assert [(event["name"], event["dur"]) for event in trace.track("one")] == [
        ("idle", 12_000), ("sampling", 28_000), ("idle", 30_000), ("sampling", 30_000),
    ]  # fmt: skip
    assert [(event["name"], event["dur"]) for event in trace.track("two")] == [("idle", 100_000)]
    assert [event["name"] for event in trace.track("verifier")] == ["idle", "verifying", "idle"]
    assert trace.counters("queue: items") == [{"running": 0, "pending": 4}, {"running": 4, "pending": 0}]
    assert [path.name for path in tmp_path.iterdir()] == ["step.json.gz"]


def torch_trace(num_events: int) -> str:
    """Return a trace in the text form of torch.profiler."""
    events = [
        {"ph": "X", "name": f"aten::op{each}", "pid": 7, "tid": 7, "ts": 10.0 * each, "dur": 5.0}
        for each in range(num_events)
    ]
    head = f'{{\n "schemaVersion": 1,\n "baseTimeNanoseconds": {BASE},\n "traceEvents": ['
    return head + ",\n".join(map(json.dumps, events)) + '\n],"traceName": "x" }\n'


@pytest.mark.parametrize("num_events", [1, 30_000])
def test_a_trace_of_torch_keeps_its_events_and_gets_ours_on_its_clock(tmp_path, num_events):
    (tmp_path / "torch.json").write_text(torch_trace(num_events))
    write_timeline(tmp_path / "step.json.gz", recording(), 0, tmp_path / "torch.json")
    trace = read_trace(tmp_path / "step.json.gz")
    assert sum(event["name"].startswith("aten::op") for event in trace.events) == num_events
    assert [event["ts"] for event in trace.track("phases")] == [5_000, 10_000, 60_000]


@pytest.mark.parametrize("kept", [30, 200, -20])
def test_an_incomplete_trace_of_torch_is_refused_and_leaves_no_file(tmp_path, kept):
    (tmp_path / "torch.json").write_text(torch_trace(5)[:kept])
    with pytest.raises(ValueError, match=r"of torch\.profiler"):
        write_timeline(tmp_path / "step.json.gz", recording(), 0, tmp_path / "torch.json")
    assert [path.name for path in tmp_path.iterdir()] == ["torch.json"]


def test_clocks_of_threads_that_differ_a_little_give_no_overlap():
    record = recording()
    record.changes = [
        Change(BASE + 20 * MS, "one", ENGINE, 0, 1),
        Change(BASE + 19 * MS, "one", ENGINE, 0, 0),
        Change(BASE + 30 * MS, "one", ENGINE, 0, 1),
    ]
    slices = [event for event in trace_events(record, 0, BASE) if event["ph"] == "X" and event["tid"] != 1]
    assert [(event["ts"], event["dur"]) for event in slices] == [
        (0, 20_000),
        (20_000, 10_000),
        (30_000, 70_000),
    ]
    assert [event["name"] for event in slices] == ["idle", "idle", "sampling"]
