"""Reading rows of HF tensors into existing memory, without memory mapping and without an extra copy."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prime.hf.checkpoint import INDEX_NAME, SINGLE_NAME, HFCheckpointReader


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
        self._locations: dict[str, _Location] = {}
        index = path / INDEX_NAME
        if index.is_file():
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            files = dict.fromkeys(reader.tensor_names, SINGLE_NAME)
        for file_name in sorted(set(files.values())):
            header, start = _read_header(path / file_name)
            for name in (name for name, file in files.items() if file == file_name):
                self._locations[name] = _Location(
                    path / file_name,
                    start + header[name]["data_offsets"][0],
                    reader.shape_of(name),
                    reader.dtype_of(name),
                )

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


def _read_header(path: Path) -> tuple[dict, int]:
    # A safetensors file starts with the size of its JSON header, in 8 bytes.
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size
