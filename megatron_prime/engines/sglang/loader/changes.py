"""The elements of a tensor that have changed, and how they travel: their places and their new bits.

Between two versions of a policy well under one per cent of the bf16 weights change, but everywhere: hardly a block of
4 KiB stays as it was. So single elements are listed. A tensor is divided into blocks of 65,536 elements; an element
takes two bytes for its place in the block, and its own bits. The bits are compared and copied as integers, which tells
-0.0 from 0.0 and keeps every NaN.

A bucket of changes is two messages. The header has a row for each tensor, [number of changes or WHOLE, checksum of the
whole tensor]; the other message has the parts of all tensors, whose sizes follow from the header.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .staging import staging_offsets
from .wire import WORDS

WHOLE = -1
"""Stands in the header for a tensor that is sent as it is."""
BLOCK = 1 << 16
CHUNK = 1 << 22
"""Elements that are compared or written at a time, since masks and indices of a whole tensor would take more memory
than the tensor. A multiple of the block."""
HALF = 1 << 15
"""Places 0 to 65,535 are stored as -32,768 to 32,767, because torch computes with signed integers of 16 bits only."""


class Changes(NamedTuple):
    """The changed elements of a tensor, in the order in which they lie in it."""

    counts: torch.Tensor
    """int32 [number of blocks]: changed elements of each block."""
    places: torch.Tensor
    """int16 [number of changes]: the place of each in its block, minus 32,768."""
    values: torch.Tensor
    """Integers [number of changes]: the new bits."""

    @property
    def parts(self) -> list[torch.Tensor]:
        """The tensors to send: none if nothing has changed."""
        return [self.counts, self.places, self.values] if len(self.values) else []


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """View the elements of a tensor as integers of their size."""
    return tensor.detach().view(WORDS[tensor.element_size()])


def num_blocks_in(num_elements: int) -> int:
    """Return the number of blocks of a tensor."""
    return -(-num_elements // BLOCK)


def write_changes(target: torch.Tensor, changes: Changes) -> None:
    """Write changed elements into a vector or matrix, which need not be contiguous.

    Wrong places never leave the tensor, so that damaged changes cannot harm the process: the checksum shows them.
    """
    bits = bits_of(target)
    ends = changes.counts.long().cumsum(0)
    numbers = torch.arange(len(changes.values), device=bits.device)
    chunks = zip(numbers.split(CHUNK), changes.places.split(CHUNK), changes.values.split(CHUNK), strict=True)
    for number, place, value in chunks:
        block = torch.searchsorted(ends, number, right=True)
        index = (block * BLOCK + place.long() + HALF).clamp_(0, bits.numel() - 1)
        if bits.is_contiguous():
            bits.view(-1).index_put_((index,), value)
        else:
            width = bits.shape[1]
            bits.index_put_((index // width, index % width), value)


def part_sizes(view: torch.Tensor, num_changes: int) -> list[int]:
    """Return the bytes of each part in which a tensor of the size of `view` travels.

    Raises RuntimeError for a number that no sender gives.
    """
    num_elements, size = view.numel(), view.element_size()
    if num_changes == WHOLE:
        return [num_elements * size]
    if not 0 <= num_changes <= num_elements:
        raise RuntimeError(f"a slice of {num_elements} elements was announced with {num_changes} changes")
    return [4 * num_blocks_in(num_elements), 2 * num_changes, size * num_changes] if num_changes else []


def packed_size(sizes: Sequence[int]) -> int:
    """Return the bytes of a message of parts of some sizes."""
    return staging_offsets(sizes)[len(sizes)]


def pack(parts: Sequence[torch.Tensor], message: torch.Tensor) -> None:
    """Copy the parts into a message, uint8, of `packed_size` bytes or more."""
    for part, offset in zip(parts, staging_offsets([part.nbytes for part in parts]), strict=False):
        message[offset : offset + part.nbytes].view(part.dtype).copy_(part.reshape(-1))


def unpack(message: torch.Tensor, views: Sequence[torch.Tensor], nums_changes: Sequence[int]) -> None:
    """Write a message into the tensors that it is for.

    Args:
        message: uint8, from `pack`.
        views: a tensor for each row of the header.
        nums_changes: the first column of the header.
    """
    sizes = [part_sizes(view, num) for view, num in zip(views, nums_changes, strict=True)]
    offsets = iter(staging_offsets([size for parts in sizes for size in parts]))
    for view, parts in zip(views, sizes, strict=True):
        pieces = [message[offset : offset + size] for size, offset in zip(parts, offsets, strict=False)]
        if len(pieces) == 1:
            view.copy_(pieces[0].view(view.dtype).view(view.shape))
        elif pieces:
            counts, places, values = pieces
            words = WORDS[view.element_size()]
            write_changes(
                view, Changes(counts.view(torch.int32), places.view(torch.int16), values.view(words))
            )
