"""Megatron's distributed checkpoint format ("torch_dist") on disk, a chunk at a time and without a process group.

A folder holds `.metadata` (which chunk of which tensor stands at which offset of which file), data files of chunks as
torch.save writes them, `common.pt` and `metadata.json`. The format is torch.distributed.checkpoint's; Megatron adds the
names and the two small files.
"""

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

METADATA = ".metadata"


@dataclass(frozen=True)
class Chunk:
    """A stored part of a tensor."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file_name: str
    offset: int
    length: int
    """Bytes in the file, framing included."""


class DistReader:
    """Chunks of the tensors of a folder. Raises ValueError when it is no such checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / METADATA).is_file():
            raise ValueError(f"{folder} is no Megatron checkpoint of format torch_dist: it has no {METADATA}")
        try:
            metadata = FileSystemReader(folder).read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, OSError) as error:
            raise ValueError(
                f"{folder / METADATA} cannot be read: {type(error).__name__}: {error}"
            ) from error
        self._tensors = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._places = metadata.storage_data
        self._by_cell: dict[tuple[str, int], dict[tuple[int, ...], list[Chunk]]] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(sorted(self._tensors))

    def shape_of(self, key: str) -> tuple[int, ...]:
        """Shape of a whole tensor."""
        return tuple(self._tensors[key].size)

    def dtype_of(self, key: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensors[key].properties.dtype

    def chunks(self, key: str, index: tuple[int, ...]) -> Sequence[Chunk]:
        """The chunks that hold a part of a cell, which stands at `index` of the leading axes."""
        places = self._by_cell.setdefault((key, len(index)), {})
        if not places:
            for chunk in self._chunks_of(key):
                ranges = (
                    range(offset, offset + size)
                    for offset, size in zip(
                        chunk.offsets[: len(index)], chunk.sizes[: len(index)], strict=True
                    )
                )
                for place in itertools.product(*ranges):
                    places.setdefault(place, []).append(chunk)
        return places.get(index, [])

    def load(self, chunk: Chunk) -> torch.Tensor:
        """A chunk's values. Raises ValueError when its file is missing, torn or holds something else."""
        try:
            with (self.folder / chunk.file_name).open("rb") as file:
                tensor = load_chunk(file, chunk)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.folder / chunk.file_name} is damaged at {chunk.key}: {error}") from error
        if tuple(tensor.shape) != chunk.sizes:
            raise ValueError(
                f"{self.folder / chunk.file_name}: {chunk.key} is {tuple(tensor.shape)}, not {chunk.sizes}"
            )
        return tensor

    def _chunks_of(self, key: str) -> list[Chunk]:
        result = []
        for stored in self._tensors[key].chunks:
            place = self._places.get(MetadataIndex(key, stored.offsets))
            if place is None:
                raise ValueError(f"{self.folder / METADATA} does not say where {key} {stored.offsets} is")
            result.append(
                Chunk(
                    key,
                    tuple(stored.offsets),
                    tuple(stored.sizes),
                    place.relative_path,
                    place.offset,
                    place.length,
                )
            )
        return result


def load_chunk(file: BinaryIO, chunk: Chunk) -> torch.Tensor:
    """Values of a chunk from its open file."""
    view: Any = _create_file_view(cast(Any, file), chunk.offset, chunk.length)
    return torch.load(view, map_location="cpu", weights_only=True)


def append_chunk(
    file: BinaryIO, key: str, offsets: Sequence[int], tensor: torch.Tensor, leading: int
) -> Chunk:
    """Write a cell as one chunk to the end of a file; the chunk has `leading` axes of size 1 before the cell's."""
    begin = file.tell()
    torch.save(tensor.reshape(*(1 for _ in range(leading)), *tensor.shape), file)
    sizes = (*(1 for _ in range(leading)), *tensor.shape)
    return Chunk(key, tuple(offsets), sizes, Path(file.name).name, begin, file.tell() - begin)


def append_empty_state(file: BinaryIO, key: str) -> Chunk:
    """Write what Megatron saves for a module without extra state."""
    begin = file.tell()
    torch.save([None], file)
    return Chunk(key, (), (), Path(file.name).name, begin, file.tell() - begin)


def write_metadata(
    folder: Path,
    chunks: Sequence[Chunk],
    specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    common: Mapping[str, object],
) -> None:
    """Write the small files of a folder whose data files hold `chunks`; `specs`: key -> whole shape and dtype."""
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for chunk in chunks:
        info = _StorageInfo(chunk.file_name, chunk.offset, chunk.length)
        if chunk.key not in specs:
            entries[chunk.key] = BytesStorageMetadata()
            places[MetadataIndex(chunk.key)] = info
            continue
        shape, dtype = specs[chunk.key]
        entry = entries.setdefault(
            chunk.key, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), [])
        )
        assert isinstance(entry, TensorStorageMetadata)
        entry.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))
        places[MetadataIndex(chunk.key, torch.Size(chunk.offsets))] = info
    metadata = Metadata(entries, storage_data=places, storage_meta=StorageMeta())
    with (folder / METADATA).open("wb") as file:
        pickle.dump(metadata, file)
    torch.save(dict(common), folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1, "torch", 1), str(folder))
