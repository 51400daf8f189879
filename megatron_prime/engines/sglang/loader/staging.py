"""Memory that a training rank and the receiver on the same device share; the sender's `SharedBuffer` makes it.

This module imports the standard library and torch alone, so that it can be loaded by itself.
"""

import ctypes
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

_ALIGNMENT = 16
"""Bytes: a multiple of every element's size."""


def staging_offsets(sizes: Sequence[int]) -> list[int]:
    """Return the byte offset of each slice in a half of the buffer, then of the checksums, then of their end.

    Args:
        sizes: of the slices, in bytes.
    """
    offsets = [0]
    for size in sizes:
        offsets.append(-(-(offsets[-1] + size) // _ALIGNMENT) * _ALIGNMENT)
    return [*offsets, offsets[-1] + 16 * len(sizes)]


# A mapping outlives the sync that made it: opening a CUDA IPC handle is slow.
# A CUDA allocation must stay allocated until every process has closed its handle, so the sender keeps its buffer
# between syncs as well, and a new buffer has a new name.
_mapped: dict[str, tuple[torch.Tensor, Callable[[], None]]] = {}
"""The buffer of the last sync by its name, and the function that unmaps it."""


def map_staging(handle: dict[str, Any]) -> torch.Tensor:
    """Map another process's buffer and return its memory, uint8.

    Args:
        handle: `SharedBuffer.handle` of the process that made the buffer.

    Raises:
        OSError, RuntimeError: the memory can't be mapped, for example from another node or container.
    """
    name = handle["name"]
    if name not in _mapped:
        for _, unmap in _mapped.values():
            unmap()
        _mapped.clear()
        _mapped[name] = (_map_file if handle["kind"] == "file" else _map_cuda)(handle)
    return _mapped[name][0]


def _map_file(handle: dict[str, Any]) -> tuple[torch.Tensor, Callable[[], None]]:
    storage = torch.UntypedStorage.from_file(handle["path"], shared=True, nbytes=handle["num_bytes"])
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
    # Nothing to call: torch unmaps the file with the last tensor that uses the storage.
    return memory, lambda: None


def _map_cuda(handle: dict[str, Any]) -> tuple[torch.Tensor, Callable[[], None]]:
    class _Handle(ctypes.Structure):
        _fields_ = (("reserved", ctypes.c_ubyte * 64),)

    pointer, raw = ctypes.c_void_p(), _Handle.from_buffer_copy(bytes.fromhex(handle["raw"]))
    runtime = cuda_runtime()
    # The flag 1 is cudaIpcMemLazyEnablePeerAccess, the only one there is.
    cuda_check(runtime.cudaIpcOpenMemHandle(ctypes.byref(pointer), raw, 1), "cudaIpcOpenMemHandle")
    device = torch.device("cuda", torch.cuda.current_device())
    memory = wrap_cuda(pointer.value or 0, handle["num_bytes"], device)
    return memory, lambda: cuda_check(runtime.cudaIpcCloseMemHandle(pointer), "cudaIpcCloseMemHandle")


def cuda_runtime() -> ctypes.CDLL:
    """Return the CUDA runtime that torch has loaded into this process. Raises OSError when there is none."""
    name = f"libcudart.so.{(torch.version.cuda or '').partition('.')[0]}"
    return ctypes.CDLL(name)


def cuda_check(code: int, call: str) -> None:
    """Raise RuntimeError unless a call of the CUDA runtime returned 0."""
    if code:
        raise RuntimeError(f"{call} failed with CUDA error {code}")


def wrap_cuda(pointer: int, num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return a uint8 tensor over memory of a GPU that torch did not allocate; torch will not free it either."""
    interface = {"shape": (num_bytes,), "typestr": "|u1", "data": (pointer, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device=device)
