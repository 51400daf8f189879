"""Memory, compute and bandwidth of known GPUs, from their data sheets."""

from dataclasses import dataclass, fields, replace

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """A kind of GPU, in the kind of node in which it is usually sold."""

    name: str
    memory_gib: float
    """GiB that a process can use, without what the driver reserves."""
    bf16_tflops: float
    """Peak TFLOP/s of dense bf16 matrix products, without sparsity."""
    memory_gb_s: float
    """Memory bandwidth in GB/s."""
    nvlink_gb_s: float
    """GB/s per direction to the other GPUs of a node."""
    host_gb_s: float = 50.0
    """GB/s per direction to host memory; the default is PCIe 5 with 16 lanes."""
    nic_gb_s: float = 50.0
    """GB/s per direction and GPU to other nodes; the default is 400 Gbit/s."""
    gpus_per_node: int = 8
    host_memory_gib: float = 1000.0
    """GiB of host memory of a node; the default is that of the smaller of the usual nodes."""


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
"""Known GPUs by name: H100 SXM, H200 SXM, A100 SXM (PCIe 4 and 200 Gbit/s per GPU, as in its DGX), B200 in a DGX."""


def gpu_of(name: str, changes: dict[str, float] | None = None) -> GPU:
    """Return a known GPU with some figures replaced.

    Args:
        name: Name of the GPU; case does not matter.
        changes: Field of `GPU` -> its new value.

    Raises:
        ValueError: If the name or a figure is unknown, or a value is not positive.
    """
    by_lower = {known.lower(): gpu for known, gpu in KNOWN.items()}
    if name.lower() not in by_lower:
        raise ValueError(
            f"unknown GPU {name!r}; known are {', '.join(KNOWN)} (change their figures with --gpu-set)"
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
