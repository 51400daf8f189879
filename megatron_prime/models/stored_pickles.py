"""Reading the pickled parts of a Megatron checkpoint without executing code that someone has put there.

torch.distributed.checkpoint unpickles `.metadata` and stored objects without restriction, and Transformer Engine the
bytes inside them. Each folder is therefore read here first: every object is replaced by one that does nothing, and
whatever the format does not need is refused. Only then may torch load it.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata
from megatron.core.safe_globals import SAFE_GLOBALS
from torch.distributed.checkpoint.filesystem import _StorageInfo  # noqa: TID251 - a record, no communication
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex  # noqa: TID251 - likewise

METADATA = ".metadata"

_DCP = "torch.distributed.checkpoint"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_ENUMS = {
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.planner", "WriteItemType"),
    ("transformer_engine.common.recipe", "Format"),
}
_OF_METADATA = {
    *((f"{_DCP}.metadata", name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata")),
    *((f"{_DCP}.metadata", name) for name in ("MetadataIndex", "StorageMeta")),
    *((f"{_DCP}.metadata", name) for name in ("TensorProperties", "TensorStorageMetadata")),
    *((f"{_DCP}.planner", name) for name in ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem")),
    *((f"{_DCP}.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    # Megatron-core up to 0.15 wrote its own; later versions keep them as empty classes, to read those checkpoints.
    *((_MEGATRON, name) for name in ("MCoreMetadata", "MCoreSavePlan")),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
}
_OF_LAYER_STATES = {
    *(
        ("transformer_engine.common.recipe", name)
        for name in (
            "_FormatHelper",
            "DelayedScaling",
            "Float8BlockScaling",
            "Float8CurrentScaling",
            "MMParams",
            "MXFP8BlockScaling",
            "QParams",
        )
    ),
    ("torch._utils", "_rebuild_tensor_v2"),
}
"""Transformer Engine's state of a layer: its FP8 recipe, and tensors."""
_ALLOWED = _ENUMS | _OF_METADATA | _OF_LAYER_STATES | {("collections", "OrderedDict")}

_NOT_READABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""Errors of an unpickler on other bytes than a pickle: they are a program for it, which fails in any of these ways."""


class UnknownContentError(ValueError):
    """A file that may be undamaged refers to something that the format of this version does not have.

    It was written by another version of this program or of a library, or it was made to execute code.
    """


class _RefusedError(pickle.UnpicklingError):
    """A pickle refers to something that the format does not need."""


class _StandIn:
    """An inert object in place of every object that a pickle creates; classes derived from it replace the real ones.

    Calls, items and state are accepted. The state of a class itself is not: `__setstate__` needs an instance.
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass


class _Function:
    """A function that a pickle may call, but not change."""

    def __setstate__(self, _: object) -> NoReturn:
        raise _RefusedError("it changes a function")


class _EnumMember(_Function):
    """getattr, for members of the format's enums: some versions of Python pickle them so."""

    def __call__(self, enum: object, name: object) -> _StandIn:
        is_enum = isinstance(enum, type) and getattr(enum, "origin", None) in _ENUMS
        # Names of members are upper case, those of methods and of what leads elsewhere are not.
        if not is_enum or not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise _RefusedError(f"it reads the attribute {name!r} of something that is no enum")
        return _StandIn()


class _Storage(_Function):
    """torch.storage._load_from_bytes, which unpickles in its turn."""

    def __call__(self, data: object) -> _StandIn:
        if not isinstance(data, bytes):
            raise _RefusedError("a tensor's storage is no bytes")
        _load(data)
        return _StandIn()


_FUNCTIONS: dict[tuple[str, str], type[_Function]] = {
    ("builtins", "getattr"): _EnumMember,
    ("torch.storage", "_load_from_bytes"): _Storage,
}


class _Checker(pickle.Unpickler):
    """An unpickler that creates nothing but stand-ins."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._stand_ins: dict[tuple[str, str], Any] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401
        """Return a stand-in. Raises UnpicklingError for whatever the format does not need."""
        origin = (module_name, global_name)
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if origin not in self._stand_ins:
            if origin in _FUNCTIONS:
                self._stand_ins[origin] = _FUNCTIONS[origin]()
            elif is_dtype or origin in _ALLOWED:
                self._stand_ins[origin] = type(global_name, (_StandIn,), {"origin": origin})
            else:
                raise _RefusedError(
                    f"it refers to {module_name}.{global_name}, which a checkpoint does not need and which could "
                    "execute code"
                )
        return self._stand_ins[origin]


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of a checkpoint's folder.

    Raises:
        UnknownContentError: the file refers to something else than the classes of this format.
        ValueError: the file cannot be read.
    """
    path = folder / METADATA
    try:
        data = path.read_bytes()
        _Checker(data).load()
        metadata = pickle.loads(data)
    except _NOT_READABLE as error:
        kind = UnknownContentError if isinstance(error, _RefusedError) else ValueError
        raise kind(f"{path} cannot be read: {type(error).__name__.lstrip('_')}: {error}") from error
    locations = getattr(metadata, "storage_data", None)
    if not isinstance(metadata, Metadata | MCoreMetadata) or not isinstance(locations, dict):
        raise ValueError(f"{path} cannot be read: it holds no description of a checkpoint")
    for index, location in locations.items():
        if not isinstance(index, MetadataIndex) or not isinstance(location, _StorageInfo):
            raise ValueError(f"{path} cannot be read: it locates {index!r} at {location!r}")
    return cast(Metadata, metadata)  # An older class has the same fields.


def load_plain(path: Path) -> Any:  # noqa: ANN401 - plain values and tensors
    """Return what torch.save wrote to a file, if it is plain values, tensors and numpy arrays of numbers.

    Raises:
        UnknownContentError: the file holds something else.
        ValueError: the file cannot be read.
    """
    try:
        return _load(path.read_bytes())
    except _NOT_READABLE as error:
        raise _unsafe(path, error) from error


def refuse_code(folder: Path) -> None:
    """Check that loading a checkpoint's folder executes no code that is stored in it. Call it before torch loads it.

    Raises:
        UnknownContentError: a file holds something else than plain values, tensors and the format's classes.
        ValueError: a file cannot be read.
    """
    common = folder / "common.pt"
    if common.is_file():
        load_plain(common)
    if not (folder / METADATA).is_file():
        return  # Megatron refuses the folder with a reason of its own.
    metadata = read_metadata(folder)
    entries = metadata.state_dict_metadata
    for index, location in metadata.storage_data.items():
        if isinstance(entries.get(index.fqn), BytesStorageMetadata):
            _check_object(index.fqn, folder / location.relative_path, location.offset, location.length)


def _check_object(key: str, path: Path, offset: int, length: int) -> None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            stored = _load(file.read(length))
        if "_extra_state" in key:
            _check_layer_state(stored)
    except FileNotFoundError:
        return  # torch reports it, with the tensors that it lacks.
    except _NOT_READABLE as error:
        raise _unsafe(path, error) from error


def _check_layer_state(stored: object) -> None:
    """Check the bytes that Transformer Engine will unpickle: a tensor, or in older versions a file of torch.save."""
    if isinstance(stored, torch.Tensor) and stored.numel():
        _Checker(stored.numpy().tobytes()).load()
    elif isinstance(stored, io.BytesIO) and stored.getvalue():
        _load(stored.getvalue())
    elif isinstance(stored, list | tuple | dict):
        for item in stored.values() if isinstance(stored, dict) else stored:
            _check_layer_state(item)


def _load(data: bytes) -> Any:  # noqa: ANN401
    with torch.serialization.safe_globals([*SAFE_GLOBALS, bytes]):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _unsafe(path: Path, error: BaseException) -> ValueError:
    reason, is_refused = str(error), isinstance(error, _RefusedError)
    if "Weights only load failed" in reason:
        # torch's message goes on to advise that the file be loaded without safety; a part of it says what was found.
        found = re.search(r"Unsupported \w+: .*? was not an allowed", reason)
        reason = f"{found[0]} one" if found else "it holds more than plain values"
        is_refused = found is not None
    kind = UnknownContentError if is_refused else ValueError
    return kind(f"{path} cannot be loaded safely ({type(error).__name__.lstrip('_')}: {reason})")
