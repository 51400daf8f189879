"""Read the headers of the safetensors files in a model folder, and compare them with a model. Standard library only.

A file is an 8-byte header length, a JSON header with dtype, shape and offsets of each tensor, and the bytes. A header
tells whether the file is complete, so missing and truncated files are found before any weight is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
READABLE_DTYPES = ("F32", "F16", "BF16")
"""Dtypes of weights that can be loaded, by their codes in a header."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_PART_BYTES = 1 << 22
"""Size of the parts of two tensors that are compared at a time."""
_MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library."""


@dataclass(frozen=True)
class TensorHeader:
    """Facts about a tensor in a file."""

    file_name: str
    dtype: str
    """Its code in the header, such as BF16."""
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)
    """Position of its first byte in the file."""


def weight_file_names(folder: Path) -> list[str]:
    """Return the names of the files with a checkpoint's weights: those that its index names, else model.safetensors.

    Files of other formats in the folder, and older ones that the index does not name, are no part of the checkpoint.

    Raises:
        ValueError: If there is neither, or the index is damaged.
    """
    if (folder / INDEX_NAME).is_file():
        return sorted(set(_weight_map(folder / INDEX_NAME).values()))
    if (folder / SINGLE_NAME).is_file():
        return [SINGLE_NAME]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    raise ValueError(
        f"{folder} has neither {INDEX_NAME} nor {SINGLE_NAME}"
        + (f"; {', '.join(others[:3])} is in another format or a part of a checkpoint" if others else "")
    )


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return the header of each tensor of a checkpoint, in one file or in those that its index names.

    Raises:
        ValueError: If the folder, its index, or a file that the index names is missing or damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a directory: give the directory of an HF checkpoint")
    headers = {name: _file_headers(folder / name) for name in weight_file_names(folder)}
    index_path = folder / INDEX_NAME
    if not index_path.is_file():
        return headers[SINGLE_NAME]
    file_of = _weight_map(index_path)
    for tensor, file_name in file_of.items():
        if tensor not in headers[file_name]:
            raise ValueError(f"{folder / file_name} lacks {tensor}, which the index puts there")
    return {tensor: headers[file_name][tensor] for tensor, file_name in file_of.items()}


def misfit(headers: Mapping[str, TensorHeader], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return which tensors are missing, unexpected, or differ from `expected`; None if they fit.

    Rotary inv_freq buffers are ignored, and so is an lm_head.weight where `expected` has none: many tools write the
    copy of tied embeddings too.
    """
    tolerated = {name for name in headers if name.endswith("rotary_emb.inv_freq")} | {_HEAD}
    present = {name: headers[name] for name in expected if name in headers}
    faults = {
        "missing": sorted(expected.keys() - headers.keys()),
        "unexpected": sorted(headers.keys() - expected.keys() - tolerated),
        "wrong shape": [
            f"{name} is {header.shape} and should be {expected[name]}"
            for name, header in present.items()
            if header.shape != expected[name]
        ],
        f"not {', '.join(READABLE_DTYPES)}": [
            f"{name} is {header.dtype}"
            for name, header in present.items()
            if header.dtype not in READABLE_DTYPES
        ],
    }
    texts = [
        f"{title} ({len(items)}): {', '.join(items[:8])}{', ...' if len(items) > 8 else ''}"
        for title, items in faults.items()
        if items
    ]
    return "; ".join(texts) or None


def other_head(
    folder: Path, headers: Mapping[str, TensorHeader], expected: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Return why embeddings cannot be tied, as config.json says, if the output layer of the files is another one.

    transformers uses that layer all the same.
    """
    head, embedding = headers.get(_HEAD), headers.get(_EMBEDDING)
    if head is None or embedding is None or _HEAD in expected:
        return None
    what = "other values"
    if head.dtype != embedding.dtype:
        what = f"another dtype, {head.dtype} instead of {embedding.dtype}"
    elif head.shape == embedding.shape:
        num_bytes = math.prod(head.shape) * _BYTES.get(head.dtype, 0)
        with (folder / head.file_name).open("rb") as one, (folder / embedding.file_name).open("rb") as two:
            # All of it: a head may differ in the row of one token only.
            if all(
                _part(one, head.start + at, num_bytes - at)
                == _part(two, embedding.start + at, num_bytes - at)
                for at in range(0, num_bytes, _PART_BYTES)
            ):
                return None
    return (
        f"config.json ties the output layer to the embeddings, but {_HEAD} has {what}: set tie_word_embeddings "
        "to false in config.json to use it, or leave that tensor out"
    )


def _part(file: BinaryIO, start: int, left: int) -> bytes:
    file.seek(start)
    return file.read(min(_PART_BYTES, left))


def _weight_map(path: Path) -> dict[str, str]:
    try:
        return {
            str(tensor): str(name) for tensor, name in json.loads(path.read_bytes())["weight_map"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors index: {error!r}") from error


def _file_headers(path: Path) -> dict[str, TensorHeader]:
    if not path.is_file():
        raise ValueError(f"{path} is missing, though {INDEX_NAME} names it: download the checkpoint again")
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ValueError(f"{path} is a Git LFS pointer and not the weights: run `git lfs pull`")
        length = int.from_bytes(start, "little")
        num_bytes = path.stat().st_size - 8 - length
        if len(start) < 8 or num_bytes < 0 or length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a complete safetensors file: it ends within its header")
        text = file.read(length)
    try:
        return _parse_header(path.name, json.loads(text), 8 + length, num_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"its header is not valid ({error!r})"
        raise ValueError(f"{path} is not a complete safetensors file: {reason}") from error


def _parse_header(
    file_name: str, header: dict[str, Any], start: int, num_bytes: int
) -> dict[str, TensorHeader]:
    tensors, last = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        begin, end = entry["data_offsets"]
        if dtype in _BYTES and end - begin != math.prod(shape) * _BYTES[dtype]:
            raise ValueError(f"{name} of shape {shape} and dtype {dtype} cannot have {end - begin} bytes")
        last = max(last, end)
        tensors[name] = TensorHeader(file_name, dtype, shape, start + begin)
    if last != num_bytes:
        missing = (
            f"{last - num_bytes:,} of {last:,} bytes of its tensors are missing: download or copy it again"
        )
        raise ValueError(missing if last > num_bytes else f"{num_bytes - last:,} bytes follow its tensors")
    return tensors
