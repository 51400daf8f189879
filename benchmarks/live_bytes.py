"""A count of the bytes of live tensors after every operation, which gives the same result on every machine."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context that follows every storage returned by an operation until it is freed.

    `peak` is the largest number of bytes alive at one time, `largest` the largest number of elements of one tensor.
    A storage that existed before the context counts from the first operation that returns it (an in-place one).

    Args:
        known: tensors whose storages are never counted, such as the inputs.
    """

    def __init__(self, known: list[torch.Tensor] | None = None) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._sizes: dict[int, int] = {}
        self._watchers: dict[int, weakref.ref[Any]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known or []}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count the storages that it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf)
        self.peak = max(self.peak, self.live)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self.largest = max(self.largest, tensor.numel())
        if key in self._sizes:
            # An operation may resize a storage that is already counted.
            self.live += storage.nbytes() - self._sizes[key]
        else:
            # The weak reference reports when the storage is freed, without keeping it alive.
            self._watchers[key] = weakref.ref(storage, lambda _, key=key: self._forget(key))
            self.live += storage.nbytes()
        self._sizes[key] = storage.nbytes()

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
        del self._watchers[key]
