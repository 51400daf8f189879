"""A meter of one process: what operations on tensors of the whole batch cost, and the memory beside these tensors."""

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SAMPLE_S = 0.02
"""Time between two looks at the resident memory."""
OWN = "/megatron_prime/"
"""Folder of the code whose lines are named."""


class Meter(TorchDispatchMode):
    """A context that measures the operations with at least one tensor of `large` elements.

    On a GPU, these run there and the others on the host. Memory that is resident beyond the live large tensors is
    looked at by a thread, all the time.

    Args:
        large: number of elements from which on a tensor counts.
    """

    def __init__(self, large: int) -> None:
        super().__init__()
        self.seconds = 0.0
        """Processor time in these operations."""
        self.bytes = 0
        """Bytes of their inputs and outputs: what a GPU reads and writes."""
        self.count = 0
        """Number of them."""
        self.live = 0
        """Bytes of the large tensors that are alive."""
        self.peak = 0
        """Maximum of `live`."""
        self.at_peak: list[tuple[int, str, str]] = []
        """Bytes, shape and line of origin of each large tensor that was alive then."""
        self.other_peak = 0
        """Maximum of the resident memory without the live large tensors."""
        self._large = large
        self._alive: dict[int, tuple[int, str, str]] = {}
        self._watchers: dict[int, weakref.ref[Any]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_at_memory, daemon=True)

    def __enter__(self) -> "Meter":
        """Begin to measure."""
        self._thread.start()
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """End the measurement."""
        super().__exit__(*exception)
        self._ended.set()
        self._thread.join()

    def take(self) -> dict[str, float]:
        """Return seconds, bytes and number of operations since the last call, and the two peaks, and begin again."""
        self._look()
        found = {
            "tensor_s": self.seconds,
            "bytes": self.bytes,
            "count": self.count,
            "peak": self.peak,
            "other": self.other_peak,
        }
        self.seconds, self.bytes, self.count, self.peak, self.other_peak = 0.0, 0, 0, self.live, 0
        return found

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and measure it if it is large."""
        start = time.thread_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.thread_time() - start
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)] + outputs
        if any(tensor.numel() >= self._large for tensor in tensors):
            self.seconds += seconds
            self.count += 1
            sources = {tensor.untyped_storage()._cdata for tensor in tensors[: -len(outputs) or None]}
            if any(tensor.untyped_storage()._cdata not in sources for tensor in outputs):
                # A view costs nothing.
                self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            for tensor in outputs:
                self._follow(tensor)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or size < self._large * tensor.element_size():
            return
        kind = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        self._alive[key] = (size, kind, _line())
        # The weak reference reports when the storage is freed, without keeping it alive.
        self._watchers[key] = weakref.ref(storage, lambda _, key=key: self._forget(key))
        self.live += size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, list(self._alive.values())

    def _forget(self, key: int) -> None:
        self.live -= self._alive.pop(key)[0]
        del self._watchers[key]

    def _look_at_memory(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        self.other_peak = max(self.other_peak, resident_bytes() - self.live)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _line() -> str:
    """Return the innermost line of this project that is running."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if OWN in path:
            return f"{path.rpartition(OWN)[2]} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
