"""Offloading: parts of a role (weights, gradients, optimizer) move to host memory while they are not needed.

Offloading a part empties the storages of its tensors in place, so that every view of them (Megatron's parameters are
views of one buffer) is valid again when the part is restored, bit for bit.

    with residency.hold("weights"):         # restored on entering, if it was offloaded
        ...
                                            # offloaded again, if the configuration says so

On a GPU the copy to the host runs beside the computation that follows (`Platform.copy_to_host`). The memory is free
when the copy has finished, and a part that is needed sooner waits for that. The copies of a part in both directions are
ordered: a host copy is never read before it is complete, nor overwritten while a restore still reads it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_prime.parallel.platform import CopyMark, Platform

PartName = Literal["weights", "gradients", "optimizer"]


@dataclass(frozen=True)
class Part:
    """Tensors that are offloaded and restored together."""

    tensors: Callable[[], Iterable[torch.Tensor]]
    """Called at each offload, because an optimizer creates its moments at the first step. Views count once."""
    content: Literal["kept", "constant", "dropped"] = "kept"
    """constant: copied to the host once (frozen weights); dropped: restored as zeros (gradients between updates)."""


class Residency:
    """The parts of one role.

    Args:
        platform: allocates and copies.
        parts: the parts by name; they share no storage.
        offloaded: the parts to offload while nothing holds them, from the first `hold` or `park` on.
    """

    def __init__(
        self, platform: Platform, parts: Mapping[PartName, Part], offloaded: Collection[PartName]
    ) -> None:
        assert set(offloaded) <= set(parts)
        self._platform = platform
        self._parts = parts
        # In the order of `parts`: a set would iterate in another order in each process.
        self._offloaded: tuple[PartName, ...] = tuple(name for name in parts if name in offloaded)
        self._holders = dict.fromkeys(parts, 0)
        self._away: dict[PartName, list[_Parked]] = {}
        self._host_copies: dict[PartName, dict[int, list[torch.Tensor]]] = {name: {} for name in parts}
        self._copied: dict[PartName, CopyMark | None] = dict.fromkeys(parts)
        """Marks the end of the last copies, in either direction, that touch a part's host copies."""
        self.most_bytes = 0
        """Maximum of `bytes_here()` so far; set it to `bytes_here()` to restart the measurement."""

    @contextmanager
    def hold(self, *names: PartName) -> Iterator[None]:
        """Keep parts (all by default) on the device for the block; blocks may be nested."""
        held = names or tuple(self._parts)
        for name in held:
            self._holders[name] += 1
            self._restore(name)
        self.most_bytes = max(self.most_bytes, self.bytes_here())
        try:
            yield
        finally:
            # Parts can grow inside the block: an optimizer creates its moments at the first step.
            self.most_bytes = max(self.most_bytes, self.bytes_here())
            for name in held:
                self._holders[name] -= 1
            self.park()

    def park(self) -> None:
        """Offload every part that is to be offloaded and that nothing holds."""
        for name in self._offloaded:
            if not self._holders[name] and name not in self._away:
                self._offload(name)

    def parts(self) -> Iterator[tuple[PartName, Iterable[torch.Tensor]]]:
        """Yield the name and the tensors of each part."""
        for name, part in self._parts.items():
            yield name, part.tensors()

    def bytes_of(self, name: PartName) -> int:
        """Return the bytes of a part on the device."""
        if name in self._away:
            return 0
        return sum(storage.nbytes() for storage in self._storages(name).values())

    def bytes_here(self) -> int:
        """Return the bytes of all parts on the device."""
        return sum(self.bytes_of(name) for name in self._parts)

    def host_bytes(self) -> int:
        """Return the bytes of the host copies, which are kept while their part is on the device."""
        return sum(_num_bytes(copy) for copies in self._host_copies.values() for copy in copies.values())

    def _storages(self, name: PartName) -> dict[int, torch.UntypedStorage]:
        storages = (tensor.untyped_storage() for tensor in self._parts[name].tensors())
        return {storage._cdata: storage for storage in storages}

    def _offload(self, name: PartName) -> None:
        content, copies = self._parts[name].content, self._host_copies[name]
        storages = self._storages(name)
        # Loading a checkpoint replaces an optimizer's moments: drop the copies of storages that are gone.
        for gone in set(copies) - set(storages):
            del copies[gone]
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for key, storage in storages.items():
            num_bytes = storage.nbytes()
            if content != "dropped" and (key not in copies or content == "kept"):
                if key not in copies or _num_bytes(copies[key]) != num_bytes:
                    copies[key] = self._platform.host_buffers(num_bytes)
                pairs += zip(copies[key], _pieces(storage, copies[key]), strict=True)
        if pairs:
            self._copied[name] = self._platform.copy_to_host(pairs, self._copied[name])
        parked = [_Parked(storage, storage.nbytes(), copies.get(key)) for key, storage in storages.items()]
        for storage in storages.values():
            storage.resize_(0)
        self._away[name] = parked

    def _restore(self, name: PartName) -> None:
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for parked in self._away.pop(name, []):
            parked.storage.resize_(parked.num_bytes)
            if parked.host_copy is None:
                _bytes_of(parked.storage).zero_()
            else:
                pairs += zip(_pieces(parked.storage, parked.host_copy), parked.host_copy, strict=True)
        if pairs:
            self._copied[name] = self._platform.copy_to_device(pairs, self._copied[name])


@dataclass(frozen=True)
class _Parked:
    """A storage that was emptied by offloading."""

    storage: torch.UntypedStorage
    num_bytes: int
    host_copy: list[torch.Tensor] | None
    """The copy in pieces; None for content that is dropped."""


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """Return the storage as a flat uint8 tensor."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _pieces(storage: torch.UntypedStorage, host_copy: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the storage's bytes, divided like its host copy."""
    return _bytes_of(storage).split([len(piece) for piece in host_copy])


def _num_bytes(host_copy: list[torch.Tensor]) -> int:
    return sum(len(piece) for piece in host_copy)
