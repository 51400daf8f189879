"""Marks on storages: device memory, pinned memory, and copies that may still be under way.

A mark is an attribute of the storage, which torch keeps as long as the memory exists. Views share their storage, so
they lie where their base lies.
"""

from collections.abc import Iterator
from typing import Any

import torch

from tests.support.pretend_gpu.findings import FOUND

NEVER = -1


class Mark:
    """The place of a storage, and the copies that touch it."""

    __slots__ = ("arrives_after", "is_device", "is_pinned", "is_read_until")

    def __init__(self, *, is_device: bool = False, is_pinned: bool = False) -> None:
        self.is_device = is_device
        self.is_pinned = is_pinned
        self.arrives_after = NEVER
        """Value of `FOUND.num_waits` at the last asynchronous copy into this host memory."""
        self.is_read_until = NEVER
        """Value of `FOUND.num_waits` at the last asynchronous copy out of this host memory."""

    @property
    def is_arriving(self) -> bool:
        """True if the host has not waited since a copy into the memory began."""
        return self.arrives_after == FOUND.num_waits

    @property
    def is_leaving(self) -> bool:
        """True if the host has not waited since a copy out of the memory began."""
        return self.is_read_until == FOUND.num_waits


PAGEABLE = Mark()
"""The mark of storages that have none."""


def mark_of(tensor: torch.Tensor) -> Mark:
    """Return the mark of a tensor's memory; do not change it."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return PAGEABLE
    return getattr(_storage(tensor), "pretended", PAGEABLE)


def is_on_device(tensor: torch.Tensor) -> bool:
    """Return whether a tensor lies in device memory."""
    return mark_of(tensor).is_device


def is_emptied(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has elements, but its storage has no memory for them."""
    return tensor.numel() > 0 and not tensor.is_meta and _storage(tensor).nbytes() == 0


def put_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor's memory as device memory, and return the tensor."""
    if tensor.layout == torch.strided and not tensor.is_meta:
        _own_mark(tensor).is_device = True
    return tensor


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor's memory as pinned, and return the tensor."""
    _own_mark(tensor).is_pinned = True
    return tensor


def begin_arrival(host: torch.Tensor) -> None:
    """Note that an asynchronous copy into host memory has begun."""
    _own_mark(host).arrives_after = FOUND.num_waits


def begin_departure(host: torch.Tensor) -> None:
    """Note that an asynchronous copy out of host memory has begun."""
    _own_mark(host).is_read_until = FOUND.num_waits


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in an operation's arguments or results."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def _own_mark(tensor: torch.Tensor) -> Mark:
    storage = _storage(tensor)
    if not hasattr(storage, "pretended"):
        storage.pretended = Mark()  # type: ignore[attr-defined]
    return storage.pretended  # type: ignore[attr-defined]


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    # Without the guard, torch would ask the function mode first.
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()
