"""Reading the pickled parts of a Megatron checkpoint without executing code that someone has put there.

torch.distributed.checkpoint unpickles `.metadata` and stored objects without restriction. Each folder is therefore read
here first, by unpicklers that know the classes of that format alone; only then may torch load it.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

METADATA = ".metadata"

_FORMAT = "torch.distributed.checkpoint"
_ALLOWED = {
    *(
        (f"{_FORMAT}.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    *(
        (f"{_FORMAT}.planner", name)
        for name in ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
    ),
    (f"{_FORMAT}.filesystem", "_StorageInfo"),
    (f"{_FORMAT}.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
}

_OF_OTHER_BYTES = (
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)
"""Errors of an unpickler on bytes that are no pickle: they are a program for it, which fails in any of these ways."""


class _MetadataUnpickler(pickle.Unpickler):
    """An unpickler of the classes that describe a checkpoint."""

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401
        """Return a class of the format. Raises UnpicklingError for everything else."""
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if not is_dtype and (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it refers to {module_name}.{global_name}, which a checkpoint does not need and which could execute "
                "code"
            )
        return super().find_class(module_name, global_name)


def read_metadata(folder: Path) -> Any:  # noqa: ANN401 - torch.distributed.checkpoint's Metadata
    """Return the metadata of a checkpoint's folder.

    Raises:
        ValueError: the file cannot be read, or refers to anything but the classes of this format.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except (pickle.UnpicklingError, *_OF_OTHER_BYTES) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not hasattr(metadata, "state_dict_metadata"):
        raise ValueError(f"{path} cannot be read: it holds no description of a checkpoint")
    return metadata


def refuse_code(folder: Path) -> None:
    """Check that loading a checkpoint's folder executes no code that is stored in it. Call it before torch loads it.

    Raises:
        ValueError: a file cannot be read, or holds anything but plain values and tensors.
    """
    common = folder / "common.pt"
    if common.is_file():
        load_plain(common)
    if not (folder / METADATA).is_file():
        return  # Megatron refuses the folder with a reason of its own.
    metadata = read_metadata(folder)
    for key, entry in metadata.state_dict_metadata.items():
        if type(entry).__name__ != "BytesStorageMetadata":
            continue
        for index, location in metadata.storage_data.items():
            if index.fqn == key:
                _load_object(folder / location.relative_path, location.offset, location.length)


def load_plain(path: Path) -> Any:  # noqa: ANN401 - plain values and tensors
    """Return what torch.save wrote to a file, if it is plain values, tensors and numpy arrays of numbers.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    try:
        return _load(path.read_bytes())
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded safely ({type(error).__name__}: {error})") from error


def _load_object(path: Path, offset: int, length: int) -> None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            _load(file.read(length))
    except FileNotFoundError:
        return  # torch reports it, with the tensors that it lacks.
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded safely ({type(error).__name__}: {error})") from error


def _load(data: bytes) -> Any:  # noqa: ANN401
    import numpy as np

    numpy_rebuild: Any = np.random.get_state()[1].__reduce__()[0]  # type: ignore[union-attr, index]
    # Arrays of unsigned integers are numpy's random state; BytesIO is the extra state of Megatron's layers.
    allowed = [numpy_rebuild, np.ndarray, np.dtype, type(np.dtype(np.uint32)), io.BytesIO]
    with torch.serialization.safe_globals(allowed):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
