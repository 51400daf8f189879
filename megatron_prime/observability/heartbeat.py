"""The latest progress of this process: step, phase, and last event, for the watchdog and its reports.

Recording costs a few assignments. The record is global, one per process, because the places that record progress
(phases, collectives, microbatches) share no other object.
"""

import linecache
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from megatron_prime.observability import activity

WAITING_FILES = ("/torch/distributed/", "/megatron/core/pipeline_parallel/p2p_communication.py")
"""Source files whose code waits for other ranks when it is the innermost frame."""
WAITING_CALLS = (".wait(",)
"""Calls that wait for other ranks."""
DEVICE_CALLS = ("synchronize(", ".item(", ".tolist(", ".cpu(")
"""Calls that wait for a GPU, and therefore for the collectives that are queued on it."""
HOST_CALLS = (
    *("sleep(", ".acquire(", ".recv(", ".accept(", ".connect(", ".poll(", "select(", "flock(", "fsync("),
    *("open(", ".read(", ".readline(", ".write(", "input("),
)
"""Calls that wait for something else than a GPU. So does the standard library, which knows no tensors."""
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
OWN_CODE = "/megatron_prime/"


@dataclass
class Heartbeat:
    """The latest progress of a process."""

    step: int = 0
    """Current step, from 1; 0 before the first."""
    phase: str = "start"
    event: str = "start"
    """The most recent event, such as a collective or microbatch."""
    count: int = 0
    """Number of common events so far. All ranks run the same program, so that a rank with a lower count is behind."""
    at: float = 0.0
    """Time of the last event, by time.monotonic()."""
    failed_phase: str = ""
    """Innermost phase that the first error has left; empty if there was none."""


_own = Heartbeat(at=time.monotonic())


def current() -> Heartbeat:
    """Return the record of this process; the object is updated in place."""
    return _own


def beat(event: str, is_common: bool = True) -> None:
    """Record an event of the main thread; those of other threads are left out.

    Args:
        event: Description, such as the name of a collective.
        is_common: True if every rank records this event equally often.
    """
    # Another thread may sample ahead: what it does must not hide that the training is stuck.
    if threading.current_thread() is not threading.main_thread():
        return
    _own.event = event
    _own.count += is_common
    _own.at = time.monotonic()


def begin_step(step: int) -> None:
    """Record the start of a step, numbered from 1."""
    _own.step = step
    beat("begin of the step")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Set the phase for the duration of a block; phases may be nested."""
    # The outer phase is restored at the end, even after an error, so that a report never names a phase that is over.
    outer, _own.phase = _own.phase, name
    begin_ns = time.time_ns()
    beat(f"begin of {name}")
    try:
        yield
    except BaseException:
        _own.failed_phase = _own.failed_phase or name
        raise
    finally:
        _own.phase = outer
        beat(f"end of {name}")
        recording = activity.recording()
        if recording is not None:
            recording.spans.append(activity.Span(name, begin_ns, time.time_ns()))


@dataclass(frozen=True)
class ThreadActivity:
    """The current activity of a thread."""

    is_waiting: bool
    """True in a collective, or while waiting for a message of another rank."""
    text: str
    """The innermost function, and the innermost line of this package that called it."""
    may_wait: bool = False
    """True if the thread waits for its GPU in case it stays in its place. Any line can be such a wait: one that reads a
    tensor, or that queues work while the GPU's queue is full."""
    place: tuple[int, int] = (0, 0)
    """The innermost frame and its instruction; they stay the same as long as the thread is inside one call."""


def thread_activity(thread_id: int, is_cuda: bool = False) -> ThreadActivity:
    """Return the current activity of a thread of this process, from its stack; takes a few microseconds.

    Args:
        thread_id: `threading.get_ident()` of the thread.
        is_cuda: True if the thread uses a GPU, for which waiting counts as waiting for other ranks.
    """
    # A snapshot of all stacks, which needs no cooperation of the thread: it may be blocked inside a C call.
    innermost = sys._current_frames().get(thread_id)
    if innermost is None:
        return ThreadActivity(False, "the thread has ended")
    file = innermost.f_code.co_filename
    line = linecache.getline(file, innermost.f_lineno)
    calls = WAITING_CALLS + (DEVICE_CALLS if is_cuda else ())
    is_waiting = any(part in file for part in WAITING_FILES) or any(call in line for call in calls)
    may_wait = is_cuda and not is_waiting and not _is_on_host(file, line)
    own = _first_own(innermost)
    text = (
        _named(innermost) if own is innermost or own is None else f"{_named(innermost)}, from {_named(own)}"
    )
    return ThreadActivity(is_waiting, text, may_wait, (id(innermost), innermost.f_lasti))


def _is_on_host(file: str, line: str) -> bool:
    """Return whether a blocked line certainly waits for something else than a GPU."""
    if file.startswith("<frozen"):  # an import
        return True
    is_standard = file.startswith(STANDARD_LIBRARY) and "-packages" not in file
    return is_standard or any(call in line for call in HOST_CALLS)


def is_own_code(file: str) -> bool:
    """Return whether a file belongs to this package, and not to a virtual environment in a checkout of its name."""
    _, folder, inside = file.rpartition(OWN_CODE)
    return bool(folder) and "-packages/" not in inside


def _first_own(frame: FrameType | None) -> FrameType | None:
    while frame is not None and not is_own_code(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _named(frame: FrameType) -> str:
    file = frame.f_code.co_filename.rpartition(OWN_CODE)[2].rpartition("/site-packages/")[2]
    return f"{frame.f_code.co_name} ({file}:{frame.f_lineno})"
