"""Conversion of a Megatron checkpoint, written by any parallel layout, to an HF checkpoint.

Each output file is laid out first (all shapes are known), then filled rectangle by rectangle while chunks are read, and
finally compared bit by bit with the source, which is read again. One chunk of the source is in memory at a time.
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
from megatron_prime.conversion.file_tasks import (
    Conversion,
    FileTask,
    FinishedFile,
    run_conversion,
    write_folder_manifest,
)
from megatron_prime.conversion.row_reader import bytes_of, read_exactly
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
"""Name prefixes of model tensors; others (optimizer, random states) are ignored."""
MAX_SHOWN = 8
"""Number of tensors or files listed in an error message."""
DTYPES = {"keep": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Value of the dtype option -> dtype to cast to."""
BLOCK_BYTES = 32 << 20
"""Bytes of an output file that are in memory at a time during the comparison."""


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
    """Convert a Megatron checkpoint to HF format.

    Args:
        source: folder of format torch_dist: a role of a run's checkpoint, or written by Megatron-LM or
            `hf_to_megatron`.
        companions: folder with config.json, tokenizer and generation config.
        output: folder to write; must not exist.
        dtype: dtype to cast to; None keeps that of the source.
        num_workers: processes.
        max_file_bytes: size limit of a safetensors file.
        progress: reports the progress.

    Raises:
        ValueError: the architecture is not supported; tensors are missing, unexpected or have a wrong shape (all are
            listed); a file is damaged; or `output` exists.
    """
    shape = read_shape(companions)
    _check_manifest(source)
    reader = DistReader(source)
    cells = cells_of(shape)
    _check(reader, cells)
    specs = _specs(shape, reader, cells, dtype)
    files = assign_files(specs, max_file_bytes)
    tasks = []
    for file_name, names in files.items():
        file_specs = {name: specs[name] for name in names}
        file_cells = [cell for cell in cells if any(piece.hf_name in file_specs for piece in cell.pieces)]
        size = sum(spec.num_bytes for spec in file_specs.values())
        tasks.append(FileTask(file_name, partial(_write_file, source, file_cells, file_specs), size))
    # A changed source file, config or option makes a different conversion, whose partial output is not resumed.
    identity = {
        "from": str(source.resolve()),
        "files": sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.iterdir()),
        "config": json.loads((companions / "config.json").read_text(encoding="utf-8")),
        "dtype": str(dtype),
        "max_file_bytes": max_file_bytes,
        "to": "hf",
    }
    conversion = Conversion(output, identity, tasks, partial(_finish, companions, specs, files))
    run_conversion(conversion, num_workers, progress)


def _check_manifest(source: Path) -> None:
    """Compare the files of the source with the checksums that were taken when they were written, if there are any."""
    folder = next((path for path in (source, source.parent) if (path / MANIFEST).is_file()), None)
    if folder is None:
        return
    prefix = "" if folder == source else f"{source.name}/"
    entries = {name: entry for name, entry in read_manifest(folder).items() if name.startswith(prefix)}
    found = faults(folder, entries)
    if found:
        raise ValueError(f"{folder} is damaged: {'; '.join(found[:MAX_SHOWN])}")


def _check(reader: DistReader, cells: Sequence[Cell]) -> None:
    """Raise a ValueError that lists all tensors that are missing, unexpected or have a wrong shape."""
    first = {cell.key: cell for cell in reversed(cells)}
    present = {key for key in reader.keys if key.startswith(MODEL_PREFIXES)}
    wrong_shapes = []
    for key in sorted(first.keys() & present):
        found, cell = reader.shape_of(key), first[key]
        needed = cell.whole_shape
        if cell.is_vocab:
            # The padding of the vocabulary depends on the tensor parallel size that wrote the checkpoint.
            num_rows = sum(piece.length for piece in cell.pieces)
            fits = len(found) == len(needed) and found[0] >= num_rows and found[1:] == needed[1:]
        else:
            fits = found == needed
        if not fits:
            wrong_shapes.append(f"{key} is {found} and should be {needed}")
    lists = (
        ("missing", sorted(first.keys() - present)),
        ("unexpected", sorted(present - first.keys())),
        ("wrong shape", wrong_shapes),
    )
    errors = [
        f"{title} ({len(items)}): {', '.join(items[:MAX_SHOWN])}{', ...' if len(items) > MAX_SHOWN else ''}"
        for title, items in lists
        if items
    ]
    if errors:
        raise ValueError(f"{reader.folder} does not fit config.json; {'; '.join(errors)}")


def _specs(
    shape: ModelShape, reader: DistReader, cells: Sequence[Cell], dtype: torch.dtype | None
) -> dict[str, TensorSpec]:
    dtypes = {piece.hf_name: reader.dtype_of(cell.key) for cell in cells for piece in cell.pieces}
    return {name: TensorSpec(dims, dtype or dtypes[name]) for name, dims in hf_tensors(shape).items()}


@dataclass(frozen=True)
class _Rectangle:
    """A block of rows and columns of an HF tensor; dims after the first are flattened into columns."""

    name: str
    first_row: int
    first_column: int
    values: torch.Tensor
    """Values [rows, columns], in the dtype of the source."""


BlockAction = Callable[[BinaryIO, int, torch.Tensor], None]
"""Called with an open file, a byte offset in it, and the contiguous values that belong there."""


def _write_file(
    source: Path, cells: Sequence[Cell], specs: Mapping[str, TensorSpec], path: Path
) -> dict[str, int]:
    """Write and check one file; return the number of elements written of each tensor."""
    reader = DistReader(source)
    header, offsets = file_layout(specs)
    with path.open("wb") as file:
        file.write(header)
        counts = _walk(reader, cells, specs, offsets, file, _write_block)
        # Values are written at their offsets in any order; this gives the file its full length even if the last ones
        # are missing, which is reported below.
        file.truncate(len(header) + sum(spec.num_bytes for spec in specs.values()))
    incomplete = [name for name, spec in specs.items() if counts.get(name, 0) != math.prod(spec.shape)]
    if incomplete:
        raise ValueError(f"{source} contains only a part of {', '.join(incomplete[:MAX_SHOWN])}")
    # The second pass reads both files again, which detects errors of the disk and of this program.
    with path.open("rb") as file:
        _walk(reader, cells, specs, offsets, file, _compare_block)
    return counts


def _walk(
    reader: DistReader,
    cells: Sequence[Cell],
    specs: Mapping[str, TensorSpec],
    offsets: Mapping[str, int],
    file: BinaryIO,
    action: BlockAction,
) -> dict[str, int]:
    """Call `action` for every contiguous block of the file; return the number of elements of each tensor."""
    counts: dict[str, int] = {}
    for rectangle in _rectangles(reader, cells, specs):
        spec, values = specs[rectangle.name], rectangle.values
        num_columns = math.prod(spec.shape[1:])
        itemsize = spec.dtype.itemsize
        begin = offsets[rectangle.name]
        counts[rectangle.name] = counts.get(rectangle.name, 0) + values.numel()
        # Whole rows are contiguous in the file and are written at once; partial rows one by one.
        if values.shape[1] == num_columns:
            action(file, begin + rectangle.first_row * num_columns * itemsize, _cast(values, spec))
            continue
        for index, row in enumerate(_cast(values, spec)):
            start = (rectangle.first_row + index) * num_columns + rectangle.first_column
            action(file, begin + start * itemsize, row.contiguous())
    return counts


def _cast(values: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    return values.to(spec.dtype).contiguous()


def _write_block(file: BinaryIO, offset: int, values: torch.Tensor) -> None:
    # The header went through Python's buffer, the values are written directly.
    file.flush()
    view, done = bytes_of(values), 0
    while done < len(view):
        done += os.pwrite(file.fileno(), view[done:], offset + done)


def _compare_block(file: BinaryIO, offset: int, values: torch.Tensor) -> None:
    flat = values.reshape(-1)
    for part in flat.split(BLOCK_BYTES // flat.element_size()):
        found = torch.empty_like(part)
        read_exactly(file.fileno(), offset, found)
        if bytes_of(found) != bytes_of(part):
            raise ValueError(
                f"{file.name} differs from what was written at byte {offset}: the disk may be faulty"
            )
        offset += part.numel() * part.element_size()


def _rectangles(
    reader: DistReader, cells: Sequence[Cell], specs: Mapping[str, TensorSpec]
) -> Iterator[_Rectangle]:
    """Yield all parts of the HF tensors in `specs` that the source contains; one chunk is in memory at a time."""
    for cell in cells:
        pieces = [piece for piece in cell.pieces if piece.hf_name in specs]
        for chunk in reader.chunks(cell.key, cell.index):
            num_leading = len(cell.index)
            starts = chunk.offsets[num_leading:]
            sizes = chunk.sizes[num_leading:]
            overlaps = [(piece, _overlap(piece, starts, sizes)) for piece in pieces]
            if not any(overlap for _, overlap in overlaps):
                continue
            values = _select_cell(reader.load(chunk), cell, chunk)
            for piece, overlap in overlaps:
                if overlap is not None:
                    yield _rectangle(piece, overlap, starts, values)
            del values  # Free the chunk before the next one is read.


def _select_cell(values: torch.Tensor, cell: Cell, chunk: Chunk) -> torch.Tensor:
    # The offsets along the cell's own dims come after those of the leading dims and are not needed here.
    for index, offset in zip(cell.index, chunk.offsets, strict=False):
        values = values[index - offset]
    return values


def _overlap(piece: Piece, starts: Sequence[int], sizes: Sequence[int]) -> tuple[int, int] | None:
    """Return the overlap [first, end) of piece and chunk, in the cell's indices along the piece's dim."""
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
    finished: Mapping[str, FinishedFile],
) -> None:
    write_index(folder, specs, files)
    copy_companions(companions, folder, {spec.dtype for spec in specs.values()})
    write_folder_manifest(folder, finished)
