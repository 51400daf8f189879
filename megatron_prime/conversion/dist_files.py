"""Reading and writing Megatron's distributed checkpoint format ("torch_dist") chunk by chunk, without a process group.

A folder contains `.metadata` (the file and offset of every chunk of every tensor), data files with chunks in the format
of torch.save, `common.pt` and `metadata.json`. The format is that of torch.distributed.checkpoint; Megatron defines the
names and adds the two small files.
"""

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
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

from megatron_prime.models.stored_pickles import METADATA, read_metadata


@dataclass(frozen=True)
class Chunk:
    """A stored part of a tensor, and its location on disk."""

    key: str
    """Name of the tensor."""
    offsets: tuple[int, ...]
    """First index of the chunk along each dim of the tensor."""
    sizes: tuple[int, ...]
    """Shape of the chunk."""
    file_name: str
    offset: int
    """First byte in the file."""
    length: int
    """Number of bytes in the file, including the framing of torch.save."""


class DistReader:
    """Reads the chunks of the tensors in a folder.

    Raises:
        ValueError: the folder is not a checkpoint of this format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / METADATA).is_file():
            raise ValueError(
                f"{folder} is not a Megatron checkpoint of format torch_dist: it has no {METADATA}"
            )
        metadata = read_metadata(folder)
        self._tensors = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._locations = metadata.storage_data
        self._by_cell: dict[tuple[str, int], dict[tuple[int, ...], list[Chunk]]] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def shape_of(self, key: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return tuple(self._tensors[key].size)

    def dtype_of(self, key: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self._tensors[key].properties.dtype

    def chunks(self, key: str, index: tuple[int, ...]) -> Sequence[Chunk]:
        """Return the chunks that contain a part of the cell at `index` of the leading dims."""
        # A tensor may have as many chunks as layers times ranks: they are sorted by cell once, on first use.
        by_index = self._by_cell.setdefault((key, len(index)), {})
        if not by_index:
            for chunk in self._chunks_of(key):
                ranges = (
                    range(offset, offset + size)
                    for offset, size in zip(
                        chunk.offsets[: len(index)], chunk.sizes[: len(index)], strict=True
                    )
                )
                for covered in itertools.product(*ranges):
                    by_index.setdefault(covered, []).append(chunk)
        return by_index.get(index, [])

    def load(self, chunk: Chunk) -> torch.Tensor:
        """Return the values of a chunk.

        Raises:
            ValueError: the file is missing, truncated, or contains something else.
        """
        try:
            with (self.folder / chunk.file_name).open("rb") as file:
                tensor = load_chunk(file, chunk)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.folder / chunk.file_name} is damaged at {chunk.key}: {error}") from error
        if tuple(tensor.shape) != chunk.sizes:
            raise ValueError(
                f"{self.folder / chunk.file_name}: {chunk.key} has shape {tuple(tensor.shape)}, not {chunk.sizes}"
            )
        return tensor

    def _chunks_of(self, key: str) -> list[Chunk]:
        result = []
        for stored in self._tensors[key].chunks:
            location = self._locations.get(MetadataIndex(key, stored.offsets))
            if location is None:
                raise ValueError(
                    f"{self.folder / METADATA} does not locate the chunk of {key} at {stored.offsets}"
                )
            result.append(
                Chunk(
                    key,
                    tuple(stored.offsets),
                    tuple(stored.sizes),
                    location.relative_path,
                    location.offset,
                    location.length,
                )
            )
        return result


def load_chunk(file: BinaryIO, chunk: Chunk) -> torch.Tensor:
    """Return the values of a chunk from its open file."""
    # torch.load would read to the end of the file, so it gets a view of the chunk's bytes.
    view: Any = _create_file_view(cast(Any, file), chunk.offset, chunk.length)
    return torch.load(view, map_location="cpu", weights_only=True)


def append_chunk(
    file: BinaryIO, key: str, offsets: Sequence[int], tensor: torch.Tensor, num_leading: int
) -> Chunk:
    """Append a cell to a file as one chunk, with `num_leading` dims of size 1 prepended, and return its location."""
    begin = file.tell()
    sizes = (*(1 for _ in range(num_leading)), *tensor.shape)
    # Every chunk has the whole framing of torch.save, as torch.distributed.checkpoint expects.
    torch.save(tensor.reshape(sizes), file)
    return Chunk(key, tuple(offsets), sizes, Path(file.name).name, begin, file.tell() - begin)


def append_empty_state(file: BinaryIO, key: str) -> Chunk:
    """Append the object that Megatron saves for a module without extra state, and return its location."""
    begin = file.tell()
    torch.save([None], file)
    return Chunk(key, (), (), Path(file.name).name, begin, file.tell() - begin)


def write_metadata(
    folder: Path,
    chunks: Sequence[Chunk],
    specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    common: Mapping[str, object],
) -> None:
    """Write `.metadata`, `common.pt` and `metadata.json` of a folder whose data files contain `chunks`.

    Args:
        folder: the checkpoint folder.
        chunks: all chunks of all data files.
        specs: tensor name -> (shape, dtype) of the whole tensor. Chunks of other names are objects.
        common: content of `common.pt`.
    """
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    locations: dict[MetadataIndex, _StorageInfo] = {}
    for chunk in chunks:
        info = _StorageInfo(chunk.file_name, chunk.offset, chunk.length)
        # Extra states are pickled objects and have no shape.
        if chunk.key not in specs:
            entries[chunk.key] = BytesStorageMetadata()
            locations[MetadataIndex(chunk.key)] = info
            continue
        shape, dtype = specs[chunk.key]
        entry = entries.setdefault(
            chunk.key, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), [])
        )
        assert isinstance(entry, TensorStorageMetadata)
        entry.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))
        locations[MetadataIndex(chunk.key, torch.Size(chunk.offsets))] = info
    metadata = Metadata(entries, storage_data=locations, storage_meta=StorageMeta())
    with (folder / METADATA).open("wb") as file:
        pickle.dump(metadata, file)
    torch.save(dict(common), folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1, "torch", 1), str(folder))
