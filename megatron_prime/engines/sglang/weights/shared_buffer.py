"""Memory that another process on the node can map, for handing weights to the server on the same device.

On a CPU this is an anonymous file (memfd), reached as /proc/PID/fd/N. On a GPU it is a separate allocation with a raw
CUDA IPC handle, because torch's own handles require both processes to run the same version of torch. The kernel and the
driver free both when the process that made them ends, however that happens. `loader.staging.map_staging` is the other
end.
"""

import ctypes
import os
import uuid
from collections.abc import Callable
from typing import Any

import psutil
import torch

from megatron_prime.engines.sglang.loader.staging import cuda_check, cuda_runtime, wrap_cuda


class SharedBuffer:
    """A flat uint8 buffer with a handle for another process of this node.

    Args:
        num_bytes: size of the buffer.
        device: CPU or GPU to allocate on.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        make = _on_gpu if device.type == "cuda" else _in_kernel_file
        self.memory: torch.Tensor
        """uint8 [num_bytes]."""
        self.handle: dict[str, Any]
        """JSON values for `map_staging` in the other process."""
        self.memory, handle, self._release = make(num_bytes, device)
        # File descriptors and addresses are reused: the name tells a new buffer from an old one that is still mapped.
        self.handle = handle | {"num_bytes": num_bytes, "name": uuid.uuid4().hex}

    def close(self) -> None:
        """Free the memory. May be called twice.

        On a CPU, mappings in other processes stay valid. On a GPU they must be closed first, or the memory stays
        allocated until they are.
        """
        release, self._release = self._release, _nothing
        self.memory = torch.empty(0, dtype=torch.uint8)
        release()


def _nothing() -> None:
    """Release nothing: the buffer is closed."""


def _in_kernel_file(
    num_bytes: int, device: torch.device
) -> tuple[torch.Tensor, dict[str, Any], Callable[[], None]]:
    available = psutil.virtual_memory().available
    if num_bytes > available:
        raise ValueError(
            f"a weight sync needs {num_bytes} bytes of shared memory, {available} are free: lower "
            "rollout.sglang.weight_bucket_mib"
        )
    # Unlike a file in /dev/shm, a memfd has no name to clean up and no limit from the size of a mount.
    descriptor = os.memfd_create("megatron_prime weights")
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    os.truncate(descriptor, num_bytes)
    storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=num_bytes)
    memory = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)  # type: ignore[arg-type]
    return memory, {"kind": "file", "path": path}, lambda: os.close(descriptor)


def _on_gpu(num_bytes: int, device: torch.device) -> tuple[torch.Tensor, dict[str, Any], Callable[[], None]]:
    # Not from torch's allocator: an IPC handle covers the whole segment around a block, with the tensors next to it,
    # and expandable segments have no such handle.
    runtime = cuda_runtime()
    pointer = ctypes.c_void_p()
    cuda_check(runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(num_bytes)), "cudaMalloc")
    raw = (ctypes.c_ubyte * 64)()
    cuda_check(runtime.cudaIpcGetMemHandle(raw, pointer), "cudaIpcGetMemHandle")
    memory = wrap_cuda(pointer.value or 0, num_bytes, device)
    handle = {"kind": "cuda", "raw": bytes(raw).hex()}
    return memory, handle, lambda: cuda_check(runtime.cudaFree(pointer), "cudaFree")
