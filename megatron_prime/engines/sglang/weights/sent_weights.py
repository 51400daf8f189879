"""The bits that a training rank has sent last, from which it knows what has changed since."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_prime.engines.sglang.loader.changes import BLOCK, CHUNK, HALF, Changes, bits_of, num_blocks_in


@dataclass
class _Kept:
    label: str
    """The weights that the bits belong to."""
    tensors: list[list[torch.Tensor]]
    """The chunks of each tensor, on the host."""


class SentWeights:
    """A copy, in host memory, of every slice that this rank sends, as it was sent last.

    A copy and not a hash of each block, because the changes are single elements all over the weights, and because a
    hash that collides would lose one. A copy and not a mark set by the optimizer, because weights also change when
    checkpoints are loaded or updates are taken back, and a mark that was forgotten would be noticed too late.

    Args:
        is_pinned: pin the memory, which makes the way to a GPU faster.
    """

    def __init__(self, *, is_pinned: bool) -> None:
        self._is_pinned = is_pinned
        self._kept: dict[Hashable, _Kept] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory in use."""
        return sum(c.nbytes for kept in self._kept.values() for chunks in kept.tensors for c in chunks)

    def advance(
        self, key: Hashable, tensors: Sequence[torch.Tensor], base: str | None, label: str
    ) -> list[Changes | None]:
        """Return the changes of each tensor of a slice since `base`, and keep the tensors as those of `label`.

        None stands for a tensor that has to be sent whole: its bits at `base` are not known, or its changes would take
        more bytes.

        Args:
            key: identifies the slice.
            tensors: its content now.
            base: the weights that the receiver has; None if it is not known to have any of these.
            label: the weights that are being sent; a name that is never used again for others.
        """
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept("", [self._chunks(tensor) for tensor in tensors])
        is_known = base is not None and kept.label == base
        is_kept = kept.label == label
        # In the middle of an update, that an error may interrupt, the bits belong to no weights.
        kept.label = ""
        changes: list[Changes | None] = [None] * len(tensors)
        if is_known:
            changes = [take_changes(old, new) for old, new in zip(kept.tensors, tensors, strict=True)]
        elif not is_kept:
            for old, new in zip(kept.tensors, tensors, strict=True):
                for before, after in zip(old, _split(new), strict=True):
                    before.copy_(after)
        kept.label = label
        return changes

    def _chunks(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        # Chunk by chunk: torch rounds pinned memory up to a power of two, which a whole chunk is already.
        return [
            torch.empty(chunk.shape, dtype=chunk.dtype, pin_memory=self._is_pinned)
            for chunk in _split(tensor)
        ]


def take_changes(old: Sequence[torch.Tensor], new: torch.Tensor) -> Changes | None:
    """Return the elements of `new` whose bits differ from those of `old`, and copy them there.

    Returns None if they would take as many bytes as the tensor itself. For types of two bytes that is when half of the
    elements have changed.

    Args:
        old: the earlier bits, in chunks of `CHUNK` elements; equal to `new` afterwards.
        new: on any device, where the result is too.
    """
    num_elements, size = new.numel(), new.element_size()
    num_allowed = max(0, (num_elements * size - 4 * num_blocks_in(num_elements) - 1) // (2 + size))
    found: list[Changes] = []
    for before, after in zip(old, _split(new), strict=True):
        if num_allowed < 0:
            before.copy_(after)
            continue
        index = _differing(before, after)
        num_allowed -= len(index)
        values = after[index]
        before.index_put_((index.to(before.device),), values.to(before.device))
        counts = torch.bincount(index // BLOCK, minlength=num_blocks_in(after.numel()))
        found.append(Changes(counts.int(), (index % BLOCK - HALF).short(), values))
    if num_allowed < 0:
        return None
    return Changes(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _differing(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the indices of elements that differ, on the device of `after`."""
    if after.is_cuda:
        return (before.to(after.device, non_blocking=True) != after).nonzero().view(-1)
    # Four times as fast as torch's on a CPU.
    return torch.from_numpy(np.flatnonzero(before.numpy() != after.numpy()))


def _split(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the bits of a tensor in chunks."""
    return bits_of(tensor.contiguous()).view(-1).split(CHUNK)
