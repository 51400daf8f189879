"""What of a role lies in device memory, and when: parts that are not needed leave for host memory and come back.

A part is a set of tensors (weights, gradients, optimizer). Leaving empties the tensors' storages in place, so that
every view of them (Megatron's parameters are views of one buffer) is whole again when the part comes back, bit for bit.

    with residency.hold("weights"):         # comes back on entering, if it had left
        ...
                                            # leaves again, if the configuration says so

On a GPU a part leaves beside what the GPU is given next (`Platform.copy_to_host`): its memory is free to others once
its copy is over, and if it is asked back sooner, its return waits for that. Each part's copies, to and fro, are in one
order: a host copy is never read before it is whole, nor overwritten while a return still reads it.
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
    """Tensors that come and go together."""

    tensors: Callable[[], Iterable[torch.Tensor]]
    """Asked each time the part leaves: an optimizer makes its moments at the first step. Views count once."""
    content: Literal["kept", "constant", "dropped"] = "kept"
    """constant is copied to the host once (frozen weights); dropped comes back as zeros (gradients between updates)."""


class Residency:
    """The parts of one role.

    Args:
        platform: where host copies lie.
        parts: by name; parts share no storage.
        offloaded: the parts that leave when nobody holds them. They do so only from the first `hold` or `park` on.
    """

    def __init__(
        self, platform: Platform, parts: Mapping[PartName, Part], offloaded: Collection[PartName]
    ) -> None:
        assert set(offloaded) <= set(parts)
        self._platform = platform
        self._parts = parts
        # In an order that is the same every time
        self._offloaded: tuple[PartName, ...] = tuple(name for name in parts if name in offloaded)
        self._holders = dict.fromkeys(parts, 0)
        self._away: dict[PartName, list[_Parked]] = {}
        self._host_copies: dict[PartName, dict[int, list[torch.Tensor]]] = {name: {} for name in parts}
        self._copied: dict[PartName, CopyMark | None] = dict.fromkeys(parts)
        """End of the last copies, either way, that touch a part's host copies."""
        self.most_bytes = 0
        """Most that was held at one time; set it to `bytes_here()` to begin anew."""

    @contextmanager
    def hold(self, *names: PartName) -> Iterator[None]:
        """Bring parts (all by default) to the device for the block; blocks may be nested."""
        held = names or tuple(self._parts)
        for name in held:
            self._holders[name] += 1
            self._come(name)
        self.most_bytes = max(self.most_bytes, self.bytes_here())
        try:
            yield
        finally:
            # What grew inside the block, such as an optimizer's first moments
            self.most_bytes = max(self.most_bytes, self.bytes_here())
            for name in held:
                self._holders[name] -= 1
            self.park()

    def park(self) -> None:
        """Let every part go that leaves and that nobody holds."""
        for name in self._offloaded:
            if not self._holders[name] and name not in self._away:
                self._leave(name)

    def bytes_of(self, name: PartName) -> int:
        """Bytes of a part on the device."""
        if name in self._away:
            return 0
        return sum(storage.nbytes() for storage in self._storages(name).values())

    def bytes_here(self) -> int:
        """Bytes of all parts on the device."""
        return sum(self.bytes_of(name) for name in self._parts)

    def host_bytes(self) -> int:
        """Bytes of the host copies, which are kept while their part is on the device."""
        return sum(_num_bytes(copy) for copies in self._host_copies.values() for copy in copies.values())

    def _storages(self, name: PartName) -> dict[int, torch.UntypedStorage]:
        storages = (tensor.untyped_storage() for tensor in self._parts[name].tensors())
        return {storage._cdata: storage for storage in storages}

    def _leave(self, name: PartName) -> None:
        content, copies = self._parts[name].content, self._host_copies[name]
        storages = self._storages(name)
        for gone in set(copies) - set(storages):  # moments that a checkpoint replaced
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

    def _come(self, name: PartName) -> None:
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
    """A storage that was emptied."""

    storage: torch.UntypedStorage
    num_bytes: int
    host_copy: list[torch.Tensor] | None
    """In pieces."""


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """The storage as a flat uint8 tensor."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _pieces(storage: torch.UntypedStorage, host_copy: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The storage's bytes, divided as its host copy is."""
    return _bytes_of(storage).split([len(piece) for piece in host_copy])


def _num_bytes(host_copy: list[torch.Tensor]) -> int:
    return sum(len(piece) for piece in host_copy)
