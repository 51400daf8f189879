"""Functions and classes of torch.cuda that a run on GPUs calls; waits are counted, everything else does nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.pretend_gpu.device_answers import device
from tests.support.pretend_gpu.findings import FOUND, Kind
from tests.support.pretend_gpu.memory import is_on_device

GIB = 1 << 30


class PretendedEvent:
    """A CUDA event, which is always done: the host computes everything at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Do nothing."""

    def wait(self, *_: Any) -> None:
        """Do nothing: the stream waits, not the host."""

    def query(self) -> bool:
        """Return that the work is done."""
        return True

    def synchronize(self) -> None:
        """Count a wait."""
        FOUND.note(Kind.WAIT, "Event.synchronize()")


class PretendedStream:
    """A CUDA stream."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _: "PretendedStream") -> None:
        """Do nothing: this stream waits, not the host."""

    def wait_event(self, _: PretendedEvent) -> None:
        """Do nothing."""

    def record_event(self, event: PretendedEvent | None = None) -> PretendedEvent:
        """Return an event."""
        return event or PretendedEvent()

    def synchronize(self) -> None:
        """Count a wait."""
        FOUND.note(Kind.WAIT, "Stream.synchronize()")


_streams = [PretendedStream()]


@contextmanager
def _use(stream: PretendedStream | None) -> Iterator[None]:
    _streams.append(stream or _streams[-1])
    try:
        yield
    finally:
        _streams.pop()


def _synchronize(*_: Any) -> None:
    FOUND.note(Kind.WAIT, "synchronize()")


def _properties(*_: Any) -> SimpleNamespace:
    return SimpleNamespace(
        total_memory=80 * GIB, name="pretended", major=9, minor=0, multi_processor_count=132
    )


def install() -> None:
    """Replace what torch.cuda offers."""
    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: device().index + 1,
        "current_device": lambda: device().index,
        "set_device": lambda *_: None,
        "synchronize": _synchronize,
        "empty_cache": lambda: None,
        "Stream": PretendedStream,
        "Event": PretendedEvent,
        "stream": _use,
        "current_stream": lambda *_: _streams[-1],
        "default_stream": lambda *_: _streams[0],
        "get_device_properties": _properties,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "pretended",
        "mem_get_info": lambda *_: (79 * GIB, 80 * GIB),
        "manual_seed": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    } | dict.fromkeys(
        ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), lambda *_: 0
    )
    replaced |= dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), lambda *_: None)
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    # torch checks the type of the stream before it asks a mode.
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[assignment, method-assign]
    reduce = torch.Tensor.__reduce_ex__

    # torch pickles a plain tensor without asking a mode.
    def reduce_ex(tensor: torch.Tensor, protocol: Any) -> Any:
        if is_on_device(tensor):
            FOUND.note(Kind.PICKLED, "pickle")
        return reduce(tensor, protocol)

    torch.Tensor.__reduce_ex__ = reduce_ex  # type: ignore[method-assign]
