"""Timelines in the trace event format, for Perfetto: our own tracks, alone or merged into a trace of torch.profiler.

Our process has one thread for the phases, one for each engine, environment and verifier with slices of work and of
idleness, and counters of what waits and runs.
"""

import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from megatron_prime.observability.activity import ENVIRONMENT, QUEUE, VERIFIER, Change, Recording
from megatron_prime.observability.durable import named, sync_path

Event = dict[str, Any]

FIRST_PID = 1_000_000_000
"""Process number of our tracks of rank 0: above every real one, which torch's tracks have."""
PHASES_TID = 1
DAY_NS = 24 * 3600 * 10**9
_EVENTS = b'"traceEvents": ['
_BASE = re.compile(rb'"baseTimeNanoseconds": (\d+)')
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_COMPRESSION = 5


def trace_events(record: Recording, rank: int, base_ns: int = 0) -> Iterator[Event]:
    """Yield our own events of a recording.

    Args:
        record: a finished recording.
        rank: names the process.
        base_ns: moment of time 0 of the trace, in nanoseconds since the epoch.
    """
    pid = FIRST_PID + rank

    def named_by(kind: str, tid: int, **values: object) -> Event:
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": values}

    yield named_by("process_name", 0, name=f"megatron-prime, rank {rank}")
    yield named_by("process_sort_index", 0, sort_index=-1)  # above torch's tracks
    yield named_by("thread_name", PHASES_TID, name="phases")
    yield named_by("thread_sort_index", PHASES_TID, sort_index=PHASES_TID)
    for span in sorted(record.spans, key=lambda span: (span.begin_ns, -span.end_ns)):
        yield _slice(span.name, span.begin_ns, span.end_ns, base_ns, pid, PHASES_TID)
    by_worker: dict[str, list[Change]] = {}
    for change in record.changes:
        by_worker.setdefault(change.worker, []).append(change)
    for tid, (name, changes) in enumerate(by_worker.items(), start=PHASES_TID + 1):
        for change in changes:
            values = {"running": change.running, "pending": change.pending}
            at = (change.at_ns - base_ns) / 1000
            yield {"ph": "C", "name": f"{name}: items", "pid": pid, "tid": 0, "ts": at, "args": values}
        if changes[0].kind != QUEUE:
            yield named_by("thread_name", tid, name=name)
            yield named_by("thread_sort_index", tid, sort_index=tid)
            for label, begin_ns, end_ns in _stretches(changes, record):
                yield _slice(label, begin_ns, end_ns, base_ns, pid, tid)


def _stretches(changes: list[Change], record: Recording) -> Iterator[tuple[str, int, int]]:
    """Yield the times of work and of idleness that follow one another from the begin to the end of the recording."""
    busy = {VERIFIER: "verifying", ENVIRONMENT: "replying"}.get(changes[0].kind, "sampling")
    label, since = "idle", record.begin_ns
    for change in changes:
        now = busy if change.running else "idle"
        if now != label:
            # Threads record in the order of their lock, but read the clock themselves.
            at = max(change.at_ns, since)
            if at > since:
                yield label, since, at
            label, since = now, at
    if record.end_ns > since:
        yield label, since, record.end_ns


def _slice(name: str, begin_ns: int, end_ns: int, base_ns: int, pid: int, tid: int) -> Event:
    return {
        "ph": "X",
        "name": name,
        "cat": "megatron-prime",
        "ts": (begin_ns - base_ns) / 1000,
        "dur": (end_ns - begin_ns) / 1000,
        "pid": pid,
        "tid": tid,
    }


def write_timeline(path: Path, record: Recording, rank: int, torch_trace: Path | None = None) -> None:
    """Write a compressed trace, atomically.

    Args:
        path: ends in .json.gz.
        record: our own part.
        rank: this process.
        torch_trace: uncompressed trace of torch.profiler to merge ours into, in bounded memory.

    Raises:
        OSError: the file cannot be written.
        ValueError: torch's trace is incomplete, as after a full disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_COMPRESSION) as packed:
                if torch_trace is None:
                    packed.write(json.dumps(_own_trace(record, rank)).encode())
                else:
                    _merge(torch_trace, record, rank, packed)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_path(path.parent)
    except OSError as error:
        raise named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _own_trace(record: Recording, rank: int) -> dict[str, Any]:
    # Microseconds since the epoch are too large for exact fractions. The day is the same on all ranks.
    base_ns = record.begin_ns - record.begin_ns % DAY_NS
    events = list(trace_events(record, rank, base_ns))
    return {"baseTimeNanoseconds": base_ns, "displayTimeUnit": "ms", "traceEvents": events}


def _merge(torch_trace: Path, record: Recording, rank: int, output: gzip.GzipFile) -> None:
    """Copy torch's trace, with our events in front of its own."""
    with torch_trace.open("rb") as source:
        head = source.read(_HEAD_BYTES)
        base, start = _BASE.search(head), head.find(_EVENTS)
        if start < 0:
            raise ValueError("the trace of torch.profiler has no events: its file is incomplete")
        start += len(_EVENTS)
        output.write(head[:start])
        base_ns = int(base[1]) if base else 0
        for event in trace_events(record, rank, base_ns):
            output.write(json.dumps(event).encode() + b",\n")
        output.write(head[start:])
        tail = _copy(source, output, head[start:])
        # The file's own name is the last thing that torch writes; an event ends in a brace as well.
        if not (tail.rstrip().endswith(b"}") and b'"traceName"' in tail):
            raise ValueError("the trace of torch.profiler ends in its middle: the disk may be full")


def _copy(source: BinaryIO, output: gzip.GzipFile, tail: bytes) -> bytes:
    """Copy the rest of a file, and return the last bytes of `tail` and of the rest."""
    while chunk := source.read(_CHUNK_BYTES):
        output.write(chunk)
        tail = (tail + chunk)[-_HEAD_BYTES:]
    return tail
