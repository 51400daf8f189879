"""GPUs as their makers' data sheets describe them."""

from dataclasses import dataclass, fields, replace

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One kind of GPU in the kind of node that it is usually sold in."""

    name: str
    memory_gib: float
    """What a process can use of it, the driver's own share left out."""
    bf16_tflops: float
    """Dense matrix products, no sparsity."""
    memory_gb_s: float
    nvlink_gb_s: float
    """One direction, to the other GPUs of a node."""
    host_gb_s: float = 50.0
    """One direction, to host memory: PCIe 5 with 16 lanes."""
    nic_gb_s: float = 50.0
    """One direction, to other nodes, for each GPU: 400 Gbit/s."""
    gpus_per_node: int = 8


KNOWN = {
    gpu.name: gpu
    for gpu in (
        GPU("H100-80G", 79.1, 989.4, 3352, 450),
        GPU("H200", 139.8, 989.4, 4800, 450),
        GPU("A100-80G", 79.1, 312, 2039, 300, host_gb_s=25.0, nic_gb_s=25.0),
        GPU("A100-40G", 39.4, 312, 1555, 300, host_gb_s=25.0, nic_gb_s=25.0),
        GPU("B200", 178.4, 2250, 7700, 900),
    )
}
"""H100 SXM, H200 SXM, A100 SXM (PCIe 4, and 200 Gbit/s a GPU, as in its DGX), B200 in a DGX."""


def gpu_of(name: str, changes: dict[str, float] | None = None) -> GPU:
    """A known GPU, with some figures replaced. Raises ValueError for a name or a figure that is not known."""
    by_lower = {known.lower(): gpu for known, gpu in KNOWN.items()}
    if name.lower() not in by_lower:
        raise ValueError(
            f"GPU {name!r} is not known; known are {', '.join(KNOWN)} (change figures with --gpu-set)"
        )
    gpu = by_lower[name.lower()]
    figures = {field.name for field in fields(GPU)} - {"name"}
    for key, value in (changes or {}).items():
        if key not in figures:
            raise ValueError(f"a GPU has no figure {key!r}; it has {', '.join(sorted(figures))}")
        if value <= 0:
            raise ValueError(f"{key} = {value} must be positive")
        gpu = replace(gpu, **{key: int(value) if key == "gpus_per_node" else value})  # type: ignore[arg-type]
    return gpu
