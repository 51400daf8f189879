"""SGLang plugin: host buffers on a CPU platform need no registration with CUDA."""

import torch


def _allocate(
    dims: tuple[int, ...], dtype: torch.dtype, device: str, pin_memory: bool, allocator: object
) -> torch.Tensor:
    """Ordinary memory, in the signature of SGLang's allocation functions."""
    return torch.empty(dims, dtype=dtype, device=device)


def register() -> None:
    """Called by SGLang in each of its processes."""
    if torch.cuda.is_available():
        return
    from sglang.srt.mem_cache.pool_host import common

    common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate
