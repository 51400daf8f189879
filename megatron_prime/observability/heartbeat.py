"""Where this process is: step, phase, last event. Told by a few assignments, read when someone asks.

One record a process, because everything that tells (phases, collectives, microbatches) has no other object in common.
"""

import linecache
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

WAITING_FILES = ("/torch/distributed/", "/megatron/core/pipeline_parallel/p2p_communication.py")
"""Code whose innermost frame means that the process waits for other ranks."""
WAITING_CALLS = (".wait(",)
DEVICE_CALLS = ("synchronize(", ".item(", ".tolist(", ".cpu(")
"""Lines that wait for a GPU, and so for whatever collective is queued on it."""
OWN_CODE = "/megatron_prime/"


@dataclass
class Heartbeat:
    """The latest sign of progress."""

    step: int = 0
    """Step under way, from 1; 0 before the first."""
    phase: str = "start"
    event: str = "start"
    count: int = 0
    """Common signs so far. Ranks run the same program, so the one with fewer is behind."""
    at: float = 0.0
    """time.monotonic() of the sign."""


_own = Heartbeat(at=time.monotonic())


def current() -> Heartbeat:
    """This process's record, which changes on."""
    return _own


def beat(event: str, is_common: bool = True) -> None:
    """Something has been reached, such as a microbatch or a collective; common is what every rank reaches as often."""
    _own.event = event
    _own.count += is_common
    _own.at = time.monotonic()


def begin_step(step: int) -> None:
    """The step (counted from 1) that all further signs belong to."""
    _own.step = step
    beat("begin of the step")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """The block is a phase; phases may hold others."""
    outer, _own.phase = _own.phase, name
    beat(f"begin of {name}")
    try:
        yield
    finally:
        _own.phase = outer
        beat(f"end of {name}")


@dataclass(frozen=True)
class ThreadActivity:
    """Where a thread is."""

    is_waiting: bool
    """In a collective, or a wait for a message of another rank."""
    text: str
    """Innermost function, and the innermost line of this package that led there."""


def thread_activity(thread_id: int, is_cuda: bool = False) -> ThreadActivity:
    """Where a thread of this process is at this moment; costs some microseconds."""
    innermost = sys._current_frames().get(thread_id)
    if innermost is None:
        return ThreadActivity(False, "the thread has ended")
    line = linecache.getline(innermost.f_code.co_filename, innermost.f_lineno)
    calls = WAITING_CALLS + (DEVICE_CALLS if is_cuda else ())
    is_waiting = any(part in innermost.f_code.co_filename for part in WAITING_FILES) or any(
        call in line for call in calls
    )
    own = _first_own(innermost)
    text = (
        _named(innermost) if own is innermost or own is None else f"{_named(innermost)}, from {_named(own)}"
    )
    return ThreadActivity(is_waiting, text)


def _first_own(frame: FrameType | None) -> FrameType | None:
    while frame is not None and OWN_CODE not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame


def _named(frame: FrameType) -> str:
    file = frame.f_code.co_filename.rpartition(OWN_CODE)[2].rpartition("/site-packages/")[2]
    return f"{frame.f_code.co_name} ({file}:{frame.f_lineno})"
