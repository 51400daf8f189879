"""Reads timelines as a viewer does, by the rules of the trace event format; shares no code with their writer."""

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]
ROUNDING_US = 0.01
"""Timestamps since the epoch in microseconds have this precision as double numbers."""


@dataclass(frozen=True)
class Trace:
    """A valid trace."""

    events: list[Event]
    processes: dict[Any, str]
    """Name of each process that metadata name."""
    threads: dict[tuple[Any, Any], str]
    """Name of each (process, thread) that metadata name."""

    def track(self, name: str) -> list[Event]:
        """Return the complete events of the thread of this name in our own process, by time."""
        own = {pid for pid, text in self.processes.items() if text.startswith("megatron-prime, rank ")}
        (place,) = [place for place, text in self.threads.items() if text == name and place[0] in own]
        found = [
            event for event in self.events if event["ph"] == "X" and (event["pid"], event["tid"]) == place
        ]
        return sorted(found, key=lambda event: event["ts"])

    def counters(self, name: str) -> list[dict[str, int]]:
        """Return the values of a counter in their order."""
        return [event["args"] for event in self.events if event["ph"] == "C" and event["name"] == name]


def read_trace(path: Path) -> Trace:
    """Read a trace and assert that it is valid."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events = json.loads(text)["traceEvents"]
    processes: dict[Any, str] = {}
    threads: dict[tuple[Any, Any], str] = {}
    slices = defaultdict(list)
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= set(event), event
        if event["ph"] == "M":
            if event["name"] == "process_name":
                processes[event["pid"]] = event["args"]["name"]
            elif event["name"] == "thread_name":
                threads[event["pid"], event["tid"]] = event["args"]["name"]
            continue
        assert isinstance(event["ts"], int | float), event
        if event["ph"] == "X":
            assert event["dur"] >= 0, event
            slices[event["pid"], event["tid"]].append(
                (event["ts"], event["ts"] + event["dur"], event["name"])
            )
        elif event["ph"] == "C":
            assert event["args"] and all(
                isinstance(value, int | float) for value in event["args"].values()
            ), event
    for place, spans in slices.items():
        if place in threads and threads[place] and processes.get(place[0], "").startswith("megatron-prime"):
            _assert_nested(spans)
    return Trace(events, processes, threads)


def _assert_nested(spans: list[tuple[float, float, str]]) -> None:
    """Assert that two slices of a thread are one inside the other, or apart: a viewer cannot draw others."""
    open_slices: list[tuple[float, float, str]] = []
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_slices and open_slices[-1][1] <= span[0] + ROUNDING_US:
            open_slices.pop()
        assert not open_slices or span[1] <= open_slices[-1][1] + ROUNDING_US, (open_slices[-1], span)
        open_slices.append(span)
