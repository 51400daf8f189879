"""Rows of HF tensors read straight into memory that is there already: no mapping, no copy besides the target."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prime.hf.checkpoint import INDEX_NAME, SINGLE_NAME, HFCheckpointReader


@dataclass(frozen=True)
class _Place:
    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class RowReader:
    """Reads rows (dim 0) of a checkpoint's tensors. Raises ValueError as `HFCheckpointReader` does."""

    def __init__(self, path: Path) -> None:
        reader = HFCheckpointReader(path)  # finds what is missing or torn, from the headers alone
        self._places: dict[str, _Place] = {}
        index = path / INDEX_NAME
        if index.is_file():
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            files = dict.fromkeys(reader.tensor_names, SINGLE_NAME)
        for file_name in sorted(set(files.values())):
            head, start = _header(path / file_name)
            for name in (name for name, at in files.items() if at == file_name):
                self._places[name] = _Place(
                    path / file_name,
                    start + head[name]["data_offsets"][0],
                    reader.shape_of(name),
                    reader.dtype_of(name),
                )

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._places[name].shape

    def dtype_of(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._places[name].dtype

    def read_rows(self, name: str, start: int, target: torch.Tensor) -> None:
        """Fill `target`, contiguous and of the file's dtype, from row `start` on."""
        place = self._places[name]
        assert target.is_contiguous() and target.dtype == place.dtype
        row_bytes = math.prod(place.shape[1:]) * place.dtype.itemsize
        with place.path.open("rb", buffering=0) as file:
            read_exactly(file.fileno(), place.offset + start * row_bytes, target)


def read_exactly(descriptor: int, offset: int, target: torch.Tensor) -> None:
    """Fill a contiguous tensor's memory from a file. Raises ValueError when the file ends before."""
    view = bytes_of(target)
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ValueError(f"a file ends {len(view) - done} bytes too early: it changed while it was read")
        done += count


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def _header(path: Path) -> tuple[dict, int]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size
