"""Memory that another process on the node can map: what a training rank and its engine's rank hand weights over in.

On a CPU an anonymous file of the kernel's (memfd), reached as /proc/PID/fd/N; on a GPU an allocation of its own with
a raw CUDA IPC handle, so that the two processes may run different versions of torch. Either is gone with the process
that made it, however that ends. `rollout.sglang_staging.map_staging` is the other end.
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
        num_bytes: its size.
        device: where it lies.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        make = _on_gpu if device.type == "cuda" else _in_kernel_file
        self.memory: torch.Tensor
        """uint8 [num_bytes]."""
        self.handle: dict[str, Any]
        """JSON values that `map_staging` takes."""
        self.memory, handle, self._release = make(num_bytes, device)
        # Numbers of descriptors and addresses come again: a buffer must not pass for one that a receiver still maps.
        self.handle = handle | {"num_bytes": num_bytes, "name": uuid.uuid4().hex}

    def close(self) -> None:
        """Give it back. Mappings of other processes stay valid on a CPU; on a GPU they must be closed before."""
        release, self._release = self._release, _nothing
        self.memory = torch.empty(0, dtype=torch.uint8)
        release()


def _nothing() -> None:
    """What there is to release of a closed buffer."""


def _in_kernel_file(
    num_bytes: int, device: torch.device
) -> tuple[torch.Tensor, dict[str, Any], Callable[[], None]]:
    available = psutil.virtual_memory().available
    if num_bytes > available:
        raise ValueError(
            f"a weight sync needs {num_bytes} bytes of shared memory, {available} are free: lower "
            "rollout.sglang.weight_bucket_mib"
        )
    descriptor = os.memfd_create("megatron_prime weights")
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    os.truncate(descriptor, num_bytes)
    storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=num_bytes)
    memory = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)  # type: ignore[arg-type]
    return memory, {"kind": "file", "path": path}, lambda: os.close(descriptor)


def _on_gpu(num_bytes: int, device: torch.device) -> tuple[torch.Tensor, dict[str, Any], Callable[[], None]]:
    # Not from torch's allocator: the handle of a block of it would expose its neighbours, and its kind varies.
    runtime = cuda_runtime()
    pointer = ctypes.c_void_p()
    cuda_check(runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(num_bytes)), "cudaMalloc")
    raw = (ctypes.c_ubyte * 64)()
    cuda_check(runtime.cudaIpcGetMemHandle(raw, pointer), "cudaIpcGetMemHandle")
    memory = wrap_cuda(pointer.value or 0, num_bytes, device)
    handle = {"kind": "cuda", "raw": bytes(raw).hex()}
    return memory, handle, lambda: cuda_check(runtime.cudaFree(pointer), "cudaFree")
