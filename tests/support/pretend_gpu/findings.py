"""The record of what was found: how often, of which kind, in which phase of a step, and where in the code."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from megatron_prime.observability import heartbeat

PASSING = (str(Path(__file__).parent), "/megatron_prime/parallel/cpu_shim.py")
"""Code that every call passes through: of this package, and of the redirection of CUDA calls to the CPU."""
LIBRARIES = ("/site-packages/megatron/", "/site-packages/transformers/", "/torch/distributed/checkpoint/")
PLANTED = "/tests/gpu/"


class Kind(StrEnum):
    """A kind of finding."""

    MIXED = "host and device tensors in one operation"
    HOST_IN_DEVICE_GROUP = "host tensor in a device collective"
    DEVICE_IN_HOST_GROUP = "device tensor in a host collective"
    HOST_VIEW = "device memory read by the host"
    PICKLED = "device tensor pickled"
    OFFLOADED = "read of an offloaded tensor"
    UNFINISHED = "host memory used before its copy has ended"
    WAIT = "host waits for the device"
    COPY_TO_HOST = "blocking copy to the host"
    COPY_TO_DEVICE = "blocking copy to the device"
    PAGEABLE = "copy between the device and pageable memory"


COSTS = (Kind.WAIT, Kind.COPY_TO_HOST, Kind.COPY_TO_DEVICE, Kind.PAGEABLE)
"""Kinds that work, and make the host wait; every other kind is a fault."""


class Finding(NamedTuple):
    """One kind of finding at one place."""

    phase: str
    """Phase of the step, by the trainer's names."""
    kind: Kind
    operation: str
    place: str


class Findings:
    """Counts of findings in this process."""

    def __init__(self) -> None:
        self._counts: Counter[Finding] = Counter()
        self.num_waits = 0
        """Number of times that the host has waited for the device: asynchronous copies before that have ended."""

    def note(self, kind: Kind, operation: str) -> None:
        """Count a finding in the code that is running now. The costs are waits, except for copies that do not block."""
        phase = heartbeat.current().phase
        self._counts[Finding(phase, kind, operation, _place(sys._getframe(1)))] += 1
        if kind in (Kind.WAIT, Kind.COPY_TO_HOST, Kind.COPY_TO_DEVICE):
            self.num_waits += 1

    @contextmanager
    def recording(self) -> Iterator[Counter[Finding]]:
        """Yield a counter that receives the findings of the block alone."""
        outer, self._counts = self._counts, Counter()
        try:
            yield self._counts
        finally:
            self._counts = outer


FOUND = Findings()
"""The findings of this process."""


def _place(frame: FrameType | None) -> str:
    """Return the innermost line of this project, and that of the library that it called, if it was in one."""
    library = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if not any(part in path for part in PASSING):
            is_own = heartbeat.is_own_code(path)
            if is_own or PLANTED in path:
                own = _line(frame, heartbeat.OWN_CODE if is_own else PLANTED)
                return f"{library} < {own}" if library else own
            if not library and any(part in path for part in LIBRARIES):
                library = _line(frame, "/site-packages/")
        frame = frame.f_back
    return library or "?"


def _line(frame: FrameType, root: str) -> str:
    path = frame.f_code.co_filename.rpartition(root)[2]
    return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
