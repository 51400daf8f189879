"""Reading rows of HF tensors into existing memory, without memory mapping and without an extra copy."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prime.hf.checkpoint import HFCheckpointReader


@dataclass(frozen=True)
class _Location:
    """Location of a tensor on disk."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class RowReader:
    """Reads rows (dim 0) of the tensors in an HF checkpoint folder.

    Raises:
        ValueError: as `HFCheckpointReader` does.
    """

    def __init__(self, path: Path) -> None:
        reader = HFCheckpointReader(path)  # Checks the headers for missing and truncated files.
        self._locations = {
            name: _Location(*reader.location_of(name), reader.shape_of(name), reader.dtype_of(name))
            for name in reader.tensor_names
        }

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._locations[name].shape

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self._locations[name].dtype

    def read_rows(self, name: str, start: int, target: torch.Tensor) -> None:
        """Fill `target`, which must be contiguous and have the dtype of the file, with rows from `start` on."""
        location = self._locations[name]
        assert target.is_contiguous() and target.dtype == location.dtype
        row_bytes = math.prod(location.shape[1:]) * location.dtype.itemsize
        with location.path.open("rb", buffering=0) as file:
            read_exactly(file.fileno(), location.offset + start * row_bytes, target)


def read_exactly(descriptor: int, offset: int, target: torch.Tensor) -> None:
    """Fill the memory of a contiguous tensor from a file, starting at a byte offset.

    Raises:
        ValueError: the file ends too early.
    """
    view = bytes_of(target)
    done = 0
    # A single call reads at most about 2 GiB, and may return fewer bytes than requested.
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ValueError(f"a file ends {len(view) - done} bytes too early: it changed while it was read")
        done += count


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor as bytes."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")
