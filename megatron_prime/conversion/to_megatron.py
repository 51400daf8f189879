"""Conversion of an HF checkpoint to a Megatron checkpoint, cell by cell.

    output/config.json, tokenizer ...              copied from the HF checkpoint
    output/latest_checkpointed_iteration.txt       "release", read by Megatron-LM
    output/release/                                weights in format torch_dist, loadable in any layout; manifest.json

Each data file is written, read back and compared with the source bit by bit before it counts as finished. One cell (the
embedding, or a fused gate and up projection) and a block of rows for the comparison are in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_prime.conversion.cells import Cell, cells_of, extra_states
from megatron_prime.conversion.dist_files import (
    Chunk,
    append_chunk,
    append_empty_state,
    load_chunk,
    write_metadata,
)
from megatron_prime.conversion.file_tasks import (
    Conversion,
    FileTask,
    FinishedFile,
    run_conversion,
    write_folder_manifest,
)
from megatron_prime.conversion.row_reader import RowReader, bytes_of
from megatron_prime.hf.checkpoint import HFCheckpointReader, copy_companions
from megatron_prime.hf.mapping import ModelShape, Piece, hf_tensors
from megatron_prime.hf.shape import read_shape
from megatron_prime.hf.weight_files import RELEASE, TRACKER
from megatron_prime.observability.progress import Progress

BLOCK_BYTES = 32 << 20
"""Bytes of the source that are in memory at a time during the comparison."""


def hf_to_megatron(
    source: Path, output: Path, *, num_workers: int, max_file_bytes: int, progress: Progress
) -> None:
    """Convert an HF checkpoint to Megatron format; dtypes and values do not change.

    Args:
        source: HF checkpoint folder.
        output: folder to write; must not exist.
        num_workers: processes.
        max_file_bytes: approximate size limit of a data file; a larger cell has a file of its own.
        progress: reports the progress.

    Raises:
        ValueError: the architecture is not supported; tensors are missing, unexpected or have a wrong shape (all are
            listed); `output` exists; or the written data differs from the source.
    """
    shape = read_shape(source)
    HFCheckpointReader(source).check_against(hf_tensors(shape))
    reader = RowReader(source)
    dtypes = {key: _dtype_of(reader, cell) for key, cell in _first_cells(shape).items()}
    files = _assign_files(shape, dtypes, max_file_bytes)
    tasks = [
        FileTask(
            # These are the file names of torch.distributed.checkpoint: the writing rank and a counter.
            f"{RELEASE}/__{index}_0.distcp",
            partial(_write_file, source, cells, tuple(states), dtypes),
            sum(_num_bytes(cell, dtypes) for cell in cells),
        )
        for index, (cells, states) in enumerate(files)
    ]
    # A changed source file or option makes a different conversion, whose partial output is not resumed.
    identity = {
        "from": str(source.resolve()),
        "files": sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.iterdir()),
        "max_file_bytes": max_file_bytes,
        "to": "torch_dist",
    }
    conversion = Conversion(output, identity, tasks, partial(_finish, source, shape, dtypes))
    run_conversion(conversion, num_workers, progress)


def _first_cells(shape: ModelShape) -> dict[str, Cell]:
    """Return the first cell of each tensor."""
    result: dict[str, Cell] = {}
    for cell in cells_of(shape):
        result.setdefault(cell.key, cell)
    return result


def _dtype_of(reader: RowReader, cell: Cell) -> torch.dtype:
    """Return the dtype of a checkpoint tensor, that of its first piece; `_fill` checks all others."""
    return reader.dtype_of(cell.pieces[0].hf_name)


def _num_bytes(cell: Cell, dtypes: dict[str, torch.dtype]) -> int:
    return torch.Size(cell.shape).numel() * dtypes[cell.key].itemsize


def _assign_files(
    shape: ModelShape, dtypes: dict[str, torch.dtype], max_file_bytes: int
) -> list[tuple[list[Cell], Sequence[str]]]:
    """Return (cells, extra states) of each data file; all extra states are in the first one."""
    files: list[list[Cell]] = [[]]
    size = 0
    for cell in cells_of(shape):
        num_bytes = _num_bytes(cell, dtypes)
        if files[-1] and size + num_bytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(cell)
        size += num_bytes
    return [(cells, extra_states(shape) if index == 0 else ()) for index, cells in enumerate(files)]


def _write_file(
    source: Path, cells: Sequence[Cell], states: Sequence[str], dtypes: dict[str, torch.dtype], path: Path
) -> list[dict[str, Any]]:
    """Write and check one data file; return its chunks."""
    reader = RowReader(source)
    chunks: list[Chunk] = []
    with path.open("wb") as file:
        for cell in cells:
            tensor = torch.empty(cell.shape, dtype=dtypes[cell.key])
            _fill(reader, cell, tensor)
            chunks.append(append_chunk(file, cell.key, cell.offsets, tensor, len(cell.leading)))
            del tensor  # Free the cell before the next one is allocated.
        chunks += [append_empty_state(file, key) for key in states]
    # Reading both files again detects errors of the disk and of this program.
    with path.open("rb") as file:
        # The chunks of the extra states come after those of the cells and hold no weights.
        for cell, chunk in zip(cells, chunks, strict=False):
            _compare(reader, cell, load_chunk(file, chunk).reshape(cell.shape))
    return [asdict(chunk) for chunk in chunks]


def _fill(reader: RowReader, cell: Cell, tensor: torch.Tensor) -> None:
    num_rows = 0
    for piece in cell.pieces:
        found = reader.dtype_of(piece.hf_name)
        if found != tensor.dtype:
            raise ValueError(
                f"{piece.hf_name} is {found}, but {cell.key}, which contains it, is {tensor.dtype}: "
                "convert the checkpoint to one dtype first"
            )
        start, length, hf_start = _rows(piece, cell)
        reader.read_rows(piece.hf_name, hf_start, tensor[start : start + length])
        num_rows += length
    tensor[num_rows:].zero_()  # The padding of the vocabulary is at the end.


def _compare(reader: RowReader, cell: Cell, written: torch.Tensor) -> None:
    num_rows = 0
    for piece in cell.pieces:
        start, length, hf_start = _rows(piece, cell)
        num_rows += length
        for first, count in _row_blocks(length, written):
            rows = written[start + first : start + first + count]
            expected = torch.empty_like(rows)
            reader.read_rows(piece.hf_name, hf_start + first, expected)
            if bytes_of(rows) != bytes_of(expected):
                raise ValueError(
                    f"{cell.key} {cell.index} reads back differently from {piece.hf_name}: the disk may be faulty"
                )
    if written[num_rows:].any():
        raise ValueError(f"{cell.key} {cell.index}: the padding of the vocabulary does not read back as zero")


def _row_blocks(num_rows: int, tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    row_bytes = max(1, tensor[:1].numel() * tensor.element_size())
    step = max(1, BLOCK_BYTES // row_bytes)
    for first in range(0, num_rows, step):
        yield first, min(step, num_rows - first)


def _rows(piece: Piece, cell: Cell) -> tuple[int, int, int]:
    """Return a piece as rows: (first row in the cell, number of rows, first row in the HF tensor)."""
    if piece.dim == 0:
        return piece.local_start, piece.length, piece.hf_start
    # A piece along another dim covers the whole tensor, because cells are not tensor parallel.
    assert (piece.hf_start, piece.local_start, piece.length) == (0, 0, cell.shape[piece.dim])
    return 0, cell.shape[0], 0


def _finish(
    source: Path,
    shape: ModelShape,
    dtypes: dict[str, torch.dtype],
    folder: Path,
    finished: Mapping[str, FinishedFile],
) -> None:
    chunks = [
        Chunk(**entry | {"offsets": tuple(entry["offsets"]), "sizes": tuple(entry["sizes"])})
        for file in finished.values()
        for entry in file.result
    ]
    specs = {key: (cell.whole_shape, dtypes[key]) for key, cell in _first_cells(shape).items()}
    release = folder / RELEASE
    write_metadata(release, chunks, specs, {"checkpoint_version": 3.0, "iteration": 0})
    write_folder_manifest(release, {Path(path).name: file for path, file in finished.items()})
    (folder / TRACKER).write_text(RELEASE)
    copy_companions(source, folder, set(dtypes.values()))
