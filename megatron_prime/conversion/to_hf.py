"""Megatron checkpoint -> HF checkpoint, a chunk at a time, whatever layout wrote it.

Each output file is laid out first (all shapes are known), then filled rectangle by rectangle as chunks are read, and
compared with a second reading of the source bit for bit. Memory: one chunk of the source.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from megatron_prime.conversion.cells import Cell, cells_of
from megatron_prime.conversion.dist_files import Chunk, DistReader
from megatron_prime.conversion.hf_rows import bytes_of, read_exactly
from megatron_prime.conversion.units import Done, Job, Unit, manifest_of, run_job
from megatron_prime.hf.checkpoint import (
    TensorSpec,
    assign_files,
    copy_companions,
    file_layout,
    write_index,
)
from megatron_prime.hf.mapping import ModelShape, Piece, hf_tensors
from megatron_prime.hf.shape import read_shape
from megatron_prime.observability.progress import Progress
from megatron_prime.training.checkpoint.manifest import MANIFEST, faults, read_manifest

MODEL_PREFIXES = ("decoder.", "embedding.", "output_layer.", "mtp.")
"""Tensors of these names are the model's; others (optimizer, random states) are left alone."""
FAULTS_SHOWN = 8
BLOCK_BYTES = 32 << 20
"""Of a written file that are in memory for the comparison."""


def megatron_to_hf(
    source: Path,
    companions: Path,
    output: Path,
    *,
    dtype: torch.dtype | None,
    num_workers: int,
    max_file_bytes: int,
    progress: Progress,
) -> None:
    """Write the HF form of a Megatron checkpoint.

    Args:
        source: folder of format torch_dist: a role of a run's checkpoint, or what Megatron-LM or `hf_to_megatron`
            wrote.
        companions: folder with config.json, tokenizer and generation config.
        output: folder to write; must not exist.
        dtype: to cast to; None keeps the source's.
        num_workers: processes.
        max_file_bytes: of one safetensors file.
        progress: where to tell how far it is.

    Raises ValueError for an architecture that is not supported, for tensors that are missing, unexpected or of another
    shape (all named), for damaged files, and when `output` exists.
    """
    shape = read_shape(companions)
    _check_manifest(source)
    reader = DistReader(source)
    cells = cells_of(shape)
    _check(reader, cells)
    specs = _specs(shape, reader, cells, dtype)
    files = assign_files(specs, max_file_bytes)
    units = []
    for file_name, names in files.items():
        of_file = {name: specs[name] for name in names}
        wanted = set(names)
        parts = [cell for cell in cells if any(piece.hf_name in wanted for piece in cell.pieces)]
        size = sum(spec.num_bytes for spec in of_file.values())
        units.append(Unit(file_name, partial(_write_file, source, parts, of_file), size))
    identity = {
        "from": str(source.resolve()),
        "files": sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.iterdir()),
        "config": json.loads((companions / "config.json").read_text(encoding="utf-8")),
        "dtype": str(dtype),
        "max_file_bytes": max_file_bytes,
        "to": "hf",
    }
    run_job(Job(output, identity, units, partial(_finish, companions, specs, files)), num_workers, progress)


def _check_manifest(source: Path) -> None:
    """Compare the source's files with the checksums taken when they were written, where there are any."""
    folder = next((at for at in (source, source.parent) if (at / MANIFEST).is_file()), None)
    if folder is None:
        return
    prefix = "" if folder == source else f"{source.name}/"
    entries = {name: entry for name, entry in read_manifest(folder).items() if name.startswith(prefix)}
    found = faults(folder, entries)
    if found:
        raise ValueError(f"{folder} is damaged: {'; '.join(found[:FAULTS_SHOWN])}")


def _check(reader: DistReader, cells: Sequence[Cell]) -> None:
    """Raise one ValueError that names what is missing, unexpected or of another shape."""
    first = {cell.key: cell for cell in reversed(cells)}
    present = {key for key in reader.keys if key.startswith(MODEL_PREFIXES)}
    wrong = []
    for key in sorted(first.keys() & present):
        found, cell = reader.shape_of(key), first[key]
        needed = cell.whole_shape
        if cell.is_vocab:
            num_rows = sum(piece.length for piece in cell.pieces)
            fits = len(found) == len(needed) and found[0] >= num_rows and found[1:] == needed[1:]
        else:
            fits = found == needed
        if not fits:
            wrong.append(f"{key} is {found} and should be {needed}")
    lists = (
        ("missing", sorted(first.keys() - present)),
        ("unexpected", sorted(present - first.keys())),
        ("wrong shape", wrong),
    )
    told = [
        f"{title} ({len(items)}): {', '.join(items[:FAULTS_SHOWN])}{', ...' if len(items) > FAULTS_SHOWN else ''}"
        for title, items in lists
        if items
    ]
    if told:
        raise ValueError(f"{reader.folder} does not fit config.json; {'; '.join(told)}")


def _specs(
    shape: ModelShape, reader: DistReader, cells: Sequence[Cell], dtype: torch.dtype | None
) -> dict[str, TensorSpec]:
    dtypes = {piece.hf_name: reader.dtype_of(cell.key) for cell in cells for piece in cell.pieces}
    return {name: TensorSpec(dims, dtype or dtypes[name]) for name, dims in hf_tensors(shape).items()}


@dataclass(frozen=True)
class _Rectangle:
    """Rows and columns of an HF tensor (columns: all that follows the rows), and their values."""

    name: str
    first_row: int
    first_column: int
    values: torch.Tensor
    """[rows, columns], of the source's dtype."""


Use = Callable[[BinaryIO, int, torch.Tensor], None]
"""Given an open file, an offset in it and contiguous values that belong there."""


def _write_file(
    source: Path, cells: Sequence[Cell], specs: Mapping[str, TensorSpec], path: Path
) -> dict[str, int]:
    """Write and check one file; returns how many elements of each tensor there were."""
    reader = DistReader(source)
    header, offsets = file_layout(specs)
    with path.open("wb") as file:
        file.write(header)
        counts = _walk(reader, cells, specs, offsets, file, _put)
        file.truncate(len(header) + sum(spec.num_bytes for spec in specs.values()))
    lacking = [name for name, spec in specs.items() if counts.get(name, 0) != math.prod(spec.shape)]
    if lacking:
        raise ValueError(f"{source} holds only a part of {', '.join(lacking[:FAULTS_SHOWN])}")
    with path.open("rb") as file:
        _walk(reader, cells, specs, offsets, file, _compare)
    return counts


def _walk(
    reader: DistReader,
    cells: Sequence[Cell],
    specs: Mapping[str, TensorSpec],
    offsets: Mapping[str, int],
    file: BinaryIO,
    use: Use,
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for rectangle in _rectangles(reader, cells, specs):
        spec, values = specs[rectangle.name], rectangle.values
        num_columns = math.prod(spec.shape[1:])
        itemsize = spec.dtype.itemsize
        begin = offsets[rectangle.name]
        counts[rectangle.name] = counts.get(rectangle.name, 0) + values.numel()
        if values.shape[1] == num_columns:
            use(file, begin + rectangle.first_row * num_columns * itemsize, _cast(values, spec))
            continue
        for index, row in enumerate(_cast(values, spec)):
            place = (rectangle.first_row + index) * num_columns + rectangle.first_column
            use(file, begin + place * itemsize, row.contiguous())
    return counts


def _cast(values: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    return values.to(spec.dtype).contiguous()


def _put(file: BinaryIO, offset: int, values: torch.Tensor) -> None:
    file.flush()
    view, done = bytes_of(values), 0
    while done < len(view):
        done += os.pwrite(file.fileno(), view[done:], offset + done)


def _compare(file: BinaryIO, offset: int, values: torch.Tensor) -> None:
    flat = values.reshape(-1)
    for part in flat.split(BLOCK_BYTES // flat.element_size()):
        found = torch.empty_like(part)
        read_exactly(file.fileno(), offset, found)
        if bytes_of(found) != bytes_of(part):
            raise ValueError(f"{file.name} reads back otherwise than it was written, at byte {offset}")
        offset += part.numel() * part.element_size()


def _rectangles(
    reader: DistReader, cells: Sequence[Cell], specs: Mapping[str, TensorSpec]
) -> Iterator[_Rectangle]:
    """What the source holds of some HF tensors; one chunk is in memory at a time."""
    for cell in cells:
        pieces = [piece for piece in cell.pieces if piece.hf_name in specs]
        for chunk in reader.chunks(cell.key, cell.index):
            num_leading = len(cell.index)
            starts = chunk.offsets[num_leading:]
            sizes = chunk.sizes[num_leading:]
            overlaps = [(piece, _overlap(piece, starts, sizes)) for piece in pieces]
            if not any(overlap for _, overlap in overlaps):
                continue
            values = _of_cell(reader.load(chunk), cell, chunk)
            for piece, overlap in overlaps:
                if overlap is not None:
                    yield _rectangle(piece, overlap, starts, values)
            del values


def _of_cell(values: torch.Tensor, cell: Cell, chunk: Chunk) -> torch.Tensor:
    for place, offset in zip(cell.index, chunk.offsets, strict=False):
        values = values[place - offset]
    return values


def _overlap(piece: Piece, starts: Sequence[int], sizes: Sequence[int]) -> tuple[int, int] | None:
    """[first, end) along the piece's dim, in the cell, that chunk and piece share."""
    first = max(piece.local_start, starts[piece.dim])
    end = min(piece.local_start + piece.length, starts[piece.dim] + sizes[piece.dim])
    return (first, end) if first < end else None


def _rectangle(
    piece: Piece, overlap: tuple[int, int], starts: Sequence[int], values: torch.Tensor
) -> _Rectangle:
    first, end = overlap
    part = values.narrow(piece.dim, first - starts[piece.dim], end - first)
    corner = list(starts)
    corner[piece.dim] = first - piece.local_start + piece.hf_start
    return _Rectangle(
        piece.hf_name,
        corner[0],
        corner[1] if len(corner) > 1 else 0,
        part if part.ndim == 2 else part.reshape(-1, 1),
    )


def _finish(
    companions: Path,
    specs: Mapping[str, TensorSpec],
    files: Mapping[str, Sequence[str]],
    folder: Path,
    done: Mapping[str, Done],
) -> None:
    write_index(folder, specs, files)
    copy_companions(companions, folder, {spec.dtype for spec in specs.values()})
    manifest_of(folder, done)
