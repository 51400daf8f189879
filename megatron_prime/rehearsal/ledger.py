"""Live storages on a rank's device: how many bytes each role and kind holds, and the peak of each phase."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Owner(NamedTuple):
    """The purpose of a storage."""

    role: str
    """policy, prm, reference, or step for what belongs to no model."""
    kind: str
    """weights, gradients, optimizer, activations or other."""

    def __str__(self) -> str:
        return f"{self.role} {self.kind}"


NOBODY = Owner("step", "other")


@dataclass
class PhaseMemory:
    """The peak of a phase."""

    peak: int = 0
    """Most bytes alive at one time."""
    at_peak: dict[Owner, int] = field(default_factory=dict)
    """Bytes of each owner at that time."""
    largest: int = 0
    """Bytes of the largest storage that was allocated."""
    largest_place: str = ""
    """Line of this project's code that allocated it."""


class Ledger:
    """Follows storages from the operation that returns them to their end.

    Args:
        device: type of the device whose storages are followed.
        phase: returns the name of the current phase.
        place: returns the line of code that is running.
    """

    def __init__(self, device: str, phase: Callable[[], str], place: Callable[[], str]) -> None:
        self.phases: dict[str, PhaseMemory] = {}
        self.live = 0
        """Bytes alive now."""
        self.host_bytes = 0
        """Bytes of pinned host memory for offloaded parts."""
        self._device, self._phase, self._place = device, phase, place
        self._owner = NOBODY
        self._sizes: dict[int, int] = {}
        self._owners: dict[int, Owner] = {}
        self._watchers: dict[int, weakref.ref[Any]] = {}
        self._host: set[int] = set()
        self._is_on_host = False
        self._totals: Counter[Owner] = Counter()

    @contextmanager
    def owned(self, role: str, kind: str) -> Iterator[None]:
        """Count what is allocated in the block for an owner."""
        outer, self._owner = self._owner, Owner(role, kind)
        try:
            yield
        finally:
            self._owner = outer

    def assign(self, tensors: Iterable[torch.Tensor], role: str, kind: str) -> None:
        """Count the storages of tensors for an owner from now on."""
        owner = Owner(role, kind)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.device.type != self._device:
                continue
            self.see(storage)
            key = storage._cdata
            self._totals[self._owners[key]] -= self._sizes[key]
            self._totals[owner] += self._sizes[key]
            self._owners[key] = owner

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Count new storages of the device's type that are seen in the block as host memory."""
        self._is_on_host = True
        try:
            yield
        finally:
            self._is_on_host = False

    def see(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that an operation has returned, or that was resized."""
        key, size = storage._cdata, storage.nbytes()
        before = self._sizes.get(key)
        if before == size or key in self._host:
            return
        if before is None and self._is_on_host:
            self._host.add(key)
            self.host_bytes += size
            weakref.finalize(storage, self._release_host, key, size)
            return
        if before is None:
            # The weak reference reports when the storage is freed, without keeping it alive.
            self._watchers[key] = weakref.ref(storage, lambda _, key=key: self._release(key))
            self._owners[key] = self._owner
            before = 0
        self._sizes[key] = size
        self.live += size - before
        self._totals[self._owners[key]] += size - before
        if size > before:
            self._note_growth(size)

    def touch(self) -> None:
        """Note what is alive as part of the current phase, though nothing is allocated."""
        self._note_growth(0)

    def bytes_of(self, role: str, kind: str) -> int:
        """Return the bytes of an owner that are alive now."""
        return self._totals[Owner(role, kind)]

    def _note_growth(self, size: int) -> None:
        phase = self.phases.get(name := self._phase())
        if phase is None:
            phase = self.phases[name] = PhaseMemory()
        if self.live > phase.peak:
            phase.peak = self.live
            phase.at_peak = {owner: held for owner, held in self._totals.items() if held}
        if size > phase.largest:
            phase.largest, phase.largest_place = size, self._place()

    def _release(self, key: int) -> None:
        size = self._sizes.pop(key, None)
        if size is not None:
            self.live -= size
            self._totals[self._owners.pop(key)] -= size
            del self._watchers[key]

    def _release_host(self, key: int, size: int) -> None:
        self._host.discard(key)
        self.host_bytes -= size
