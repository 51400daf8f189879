"""Metrics of one step under stable names, phase timers, and the memory of a process.

A name has the form `group/quantity`; counts start with `num_` and units are suffixes (`_s`, `_gib`). `catalog` declares
every name that the project logs, with unit and description.
"""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from megatron_prime.observability import heartbeat

# The part after the group may contain the name of a data source, which the user chooses freely.
_VALID_NAME = re.compile(r"[a-z0-9_]+/\S[^\n]*")
GIB = 1024.0**3
"""Number of bytes in a GiB."""


class Metrics(MutableMapping[str, float]):
    """The scalars of one step in insertion order; values are converted to float.

    Raises:
        ValueError: On setting a name that is not of the form `group/quantity`.
    """

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self._values: dict[str, float] = {}
        self.update(values or {})

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __setitem__(self, name: str, value: float) -> None:
        if not _VALID_NAME.fullmatch(name):
            raise ValueError(f"metric {name!r} is not of the form group/quantity")
        self._values[name] = float(value)

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metrics({self._values})"

    def add(self, group: str, values: Mapping[str, float]) -> None:
        """Set every `group/name` of `values`."""
        self.update({f"{group}/{name}": value for name, value in values.items()})

    @contextmanager
    def timed(self, phase: str, synchronize: Callable[[], None] | None = None) -> Iterator[None]:
        """Add the seconds spent in the block to `time/<phase>_s`, even if the block raises.

        Args:
            phase: Name of the phase, which is also that of the heartbeat.
            synchronize: Called at both ends; needed for devices that execute asynchronously.
        """
        if synchronize is not None:
            synchronize()  # otherwise work queued by the phase before would count for this one
        start = time.perf_counter()
        try:
            with heartbeat.phase(phase):
                yield
        finally:
            if synchronize is not None:
                synchronize()
            name = f"time/{phase}_s"
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


def phase_fractions(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `time/<phase>_fraction`, the share of each phase in `time/step_s`, and that of the rest as `other`."""
    step_s = metrics["time/step_s"]
    if not step_s:
        return {}
    phases = [name for name in metrics if re.fullmatch(r"time/\w+_s", name) and name != "time/step_s"]
    shares = {f"{name.removesuffix('_s')}_fraction": metrics[name] / step_s for name in phases}
    return {**shares, "time/other_fraction": max(0.0, 1 - sum(shares.values()))}


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this program in bytes."""
    try:
        # getrusage would include the memory of the parent at the time of the fork.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        # macOS has no /proc, and its ru_maxrss is in bytes, where Linux has KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def process_memory(device_memory: Callable[[], Mapping[str, float]] | None = None) -> dict[str, float]:
    """Return the memory metrics of this process in GiB.

    Args:
        device_memory: Returns the statistics of the device in bytes by name (`allocated`, `peak_allocated`, ...). It
            is passed in because only the platform layer accesses a device.
    """
    memory = {"rss": psutil.Process().memory_info().rss, "peak_rss": peak_resident_bytes()}
    device = {f"device_{name}": size for name, size in device_memory().items()} if device_memory else {}
    return {f"memory/{name}_gib": size / GIB for name, size in {**memory, **device}.items()}
