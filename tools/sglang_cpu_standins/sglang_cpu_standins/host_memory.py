"""SGLang plugin: host buffers on a CPU platform need no registration with CUDA."""

import torch


def _allocate(dims: tuple[int, ...], dtype: torch.dtype, device: str, **_ignored: object) -> torch.Tensor:
    """Ordinary memory, where SGLang's own functions take a pinning flag and an allocator too."""
    return torch.empty(dims, dtype=dtype, device=device)


def register() -> None:
    """Called by SGLang in each of its processes."""
    if torch.cuda.is_available():
        return
    from sglang.srt.mem_cache.pool_host import common

    common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate
