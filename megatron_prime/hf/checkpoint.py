"""Reads and writes sharded Hugging Face safetensors checkpoints without holding a whole model in memory.

The writer lays out the files itself: the format is an 8-byte header length, a JSON header with the offset of each
tensor, and the bytes. All shapes are known in advance, so the header is written first and the tensors follow in any
order.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from megatron_prime.hf.headers import INDEX_NAME, SINGLE_NAME, TensorHeader, misfit, other_head, read_headers
from megatron_prime.observability.durable import sync_path

# Files besides the weights that make a checkpoint usable. A source need not have all of them.
COMPANION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

_DTYPE_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_DTYPES = {code: dtype for dtype, code in _DTYPE_CODES.items()}


class HFCheckpointReader:
    """Reads slices of the tensors in a checkpoint folder, single-file or sharded, on demand.

    Raises:
        ValueError: If the folder, its index, or a file that the index names is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Headers show missing and truncated files before any weight is loaded.
        self._headers = read_headers(self.path)
        names = sorted({header.file_name for header in self._headers.values()})
        self._handles = {name: self._open(name) for name in names}

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._headers))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header alone. Raises ValueError if there is no such tensor."""
        return self._header(name).shape

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, from the header alone. Raises ValueError unless it is fp32, fp16 or bf16."""
        code = self._header(name).dtype
        if code not in _DTYPES:
            raise ValueError(f"{name} in {self.path} has dtype {code}; only {', '.join(_DTYPES)} can be read")
        return _DTYPES[code]

    def location_of(self, name: str) -> tuple[Path, int]:
        """Return the file of a tensor and the position of its first byte there."""
        header = self._header(name)
        return self.path / header.file_name, header.start

    def read_slice(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        """Return the slice [start, start + length) of a tensor along dim 0 or 1, in the file's dtype."""
        shape = self.shape_of(name)
        if dim not in (0, 1) or dim >= len(shape) or not 0 <= start <= start + length <= shape[dim]:
            raise ValueError(
                f"[{start}, {start + length}) along dim {dim} is outside of {name}, which has shape {shape}"
                f" in {self.path}"
            )
        window = slice(start, start + length)
        return self._slice(name)[window] if dim == 0 else self._slice(name)[:, window]

    def check_against(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise one ValueError that lists all tensors that do not fit `expected`; see `hf.headers.misfit`."""
        fault = misfit(self._headers, expected) or other_head(self.path, self._headers, expected)
        if fault:
            raise ValueError(f"{self.path} does not fit its model; {fault}")

    def _open(self, file_name: str):  # noqa: ANN202 - safetensors exports no type for its handle
        path = self.path / file_name
        try:
            return safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file: {error}") from error

    def _slice(self, name: str):  # noqa: ANN202 - as above
        return self._handles[self._header(name).file_name].get_slice(name)

    def _header(self, name: str) -> TensorHeader:
        if name not in self._headers:
            raise ValueError(f"there is no tensor {name} in {self.path}")
        return self._headers[name]


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Slot:
    """The file of a tensor and its offset there, in bytes."""

    file_name: str
    offset: int


class HFCheckpointWriter:
    """A context manager that writes a checkpoint folder, which appears complete or not at all.

    Pass every tensor of `tensors` to `write` once, in any order. Files are written to a hidden folder beside `path`,
    which is renamed to `path` when the `with` block ends without an error, and removed otherwise.

    Args:
        path: Folder to write; must not exist.
        tensors: Name -> shape and dtype, in the order that the files will have.
        max_shard_bytes: Size limit of a file.
        companions_from: Folder whose config, generation config and tokenizer are copied; None copies nothing.

    Raises:
        ValueError: If `path` exists, a tensor is unknown, repeated or missing, or has a wrong shape or dtype.
    """

    def __init__(
        self,
        path: str | Path,
        tensors: Mapping[str, TensorSpec],
        *,
        max_shard_bytes: int = 5 * 10**9,
        companions_from: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise ValueError(f"{self.path} exists already: choose another path or remove it first")
        for name, spec in tensors.items():
            if spec.dtype not in _DTYPE_CODES:
                raise ValueError(f"{name}: dtype {spec.dtype} cannot be written")
        self._tensors = dict(tensors)
        self._companions_from = None if companions_from is None else Path(companions_from)
        self._missing = set(tensors)
        self._shards = assign_files(self._tensors, max_shard_bytes)
        self._slots: dict[str, _Slot] = {}
        self._files: dict[str, BinaryIO] = {}
        self._partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")

    def __enter__(self) -> HFCheckpointWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._discard()  # a killed process with the same pid may have left a folder of that name
        with contextlib.ExitStack() as undo:
            # Python does not call __exit__ after an error in __enter__, so the folder has to be removed here.
            undo.callback(self._discard)
            self._partial.mkdir()
            for file_name, names in self._shards.items():
                self._begin_file(file_name, names)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._discard()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one whole tensor from any device; this needs memory for at most one copy of it on the host."""
        spec = self._tensors.get(name)
        if spec is None:
            raise ValueError(f"{name} is not one of the tensors announced for {self.path}")
        if name not in self._missing:
            raise ValueError(f"{name} was written already to {self.path}")
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}, but {spec.shape} {spec.dtype} was announced for"
                f" {self.path}"
            )
        slot = self._slots[name]
        file = self._files[slot.file_name]
        file.seek(slot.offset)
        # The bytes are written, because numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
        self._missing.remove(name)

    def _discard(self) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _begin_file(self, file_name: str, names: list[str]) -> None:
        # The header fixes the offset of every tensor, so that tensors can be written in any order.
        header, offsets = file_layout({name: self._tensors[name] for name in names})
        file = (self._partial / file_name).open("wb")
        self._files[file_name] = file
        file.write(header)
        self._slots |= {name: _Slot(file_name, offset) for name, offset in offsets.items()}

    def _commit(self) -> None:
        if self._missing:
            first = ", ".join(sorted(self._missing)[:5])
            raise ValueError(
                f"{len(self._missing)} tensors of {self.path} were not written, among them {first}"
            )
        # All data is on disk before the folder gets its final name, so that a crash never leaves a damaged checkpoint.
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        write_index(self._partial, self._tensors, self._shards)
        if self._companions_from is not None:
            copy_companions(self._companions_from, self._partial, {s.dtype for s in self._tensors.values()})
        sync_path(self._partial)
        self._partial.rename(self.path)
        sync_path(self.path.parent)


def write_index(folder: Path, tensors: Mapping[str, TensorSpec], files: Mapping[str, Sequence[str]]) -> None:
    """Write the index of a checkpoint with several files (name -> its tensors); a single file needs none."""
    if set(files) == {SINGLE_NAME}:
        return
    total = sum(spec.num_bytes for spec in tensors.values())
    weight_map = {name: file_name for file_name, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_synced(folder / INDEX_NAME, json.dumps(index, indent=2).encode())


def copy_companions(source: Path, destination: Path, dtypes: Collection[torch.dtype]) -> None:
    """Copy config, generation config and tokenizer, and set the config's dtype if all weights have the same.

    Raises ValueError if `source` has no config.json.
    """
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} has no config.json to copy beside the weights")
    for name in COMPANION_FILES:
        if (source / name).is_file():
            content = (source / name).read_bytes()
            if name == "config.json":
                content = _config_with_dtype(content, dtypes)
            _write_synced(destination / name, content)


def _config_with_dtype(content: bytes, dtypes: Collection[torch.dtype]) -> bytes:
    # transformers casts the weights to the dtype in the config, so an outdated one would silently round them.
    names = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    config = json.loads(content)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if len(names) != 1 or config.get(key) in names:
        return content
    config[key] = names.pop()
    return json.dumps(config, indent=2).encode()


def file_layout(tensors: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Return the header of a safetensors file with these tensors in this order, and each tensor's file offset."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in tensors.items():
        begin, end = end, end + spec.num_bytes
        code = _DTYPE_CODES[spec.dtype]
        header[name] = {"dtype": code, "shape": list(spec.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    offset = 8 + len(encoded)
    offsets = {}
    for name, spec in tensors.items():
        offsets[name] = offset
        offset += spec.num_bytes
    return len(encoded).to_bytes(8, "little") + encoded, offsets


def assign_files(tensors: Mapping[str, TensorSpec], max_shard_bytes: int) -> dict[str, list[str]]:
    """Assign tensors to files of up to `max_shard_bytes`, in order; a larger tensor has a file of its own."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, spec in tensors.items():
        if groups[-1] and size + spec.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.num_bytes
    if len(groups) == 1:
        return {SINGLE_NAME: groups[0]}
    return {
        f"model-{index:05d}-of-{len(groups):05d}.safetensors": names
        for index, names in enumerate(groups, start=1)
    }


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
