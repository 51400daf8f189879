"""Versions, and the speed of plain copies and matrix products, to which other measurements can be compared."""

import platform as python_platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tools.gpu_checks.lines import Line, Setting, info, skipped

PACKAGES = ("torch", "megatron-core", "transformer-engine", "triton", "transformers", "flash-attn", "apex")
DRIVER = Path("/proc/driver/nvidia/version")


def environment(setting: Setting) -> Iterator[Line]:
    """Report versions, the GPU, the bandwidth of copies and the speed of a bf16 matrix product."""
    yield info("python", python_platform.python_version())
    for package in PACKAGES:
        try:
            yield info(package, version(package))
        except PackageNotFoundError:
            yield skipped(package, "not installed")
    if setting.is_cuda:
        properties = torch.cuda.get_device_properties(0)
        yield info("GPU", properties.name)
        yield info("compute capability", f"{properties.major}.{properties.minor}")
        yield info("GPU memory", properties.total_memory / 2**30, "GiB")
        yield info("CUDA of torch", str(torch.version.cuda))
        if DRIVER.is_file():
            yield info("driver", DRIVER.read_text().splitlines()[0].split("Module")[-1].split()[0])
    else:
        yield skipped("GPU, driver", "no GPU")
    yield from _copies(setting)
    yield _product(setting)


def _copies(setting: Setting) -> Iterator[Line]:
    """Measure copies on the device and over the link to the host."""
    num_bytes = 2**31 if setting.is_cuda and not setting.is_tiny else 2**24
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), setting)
    # A copy within the device reads and writes every byte.
    yield info("copy on the device, read + written", 2 * num_bytes / seconds / 1e9, "GB/s")
    if not setting.is_cuda:
        yield skipped("copies to and from pinned host memory", "no GPU")
        return
    # Only copies of pinned memory run asynchronously and at the full speed of the link.
    pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    for name, call in (
        ("to pinned host memory", lambda: pinned.copy_(source, non_blocking=True)),
        ("from pinned host memory", lambda: target.copy_(pinned, non_blocking=True)),
    ):
        yield info(f"copy {name}", num_bytes / median_seconds(call, setting) / 1e9, "GB/s")


def _product(setting: Setting) -> Line:
    size = 8192 if setting.is_cuda and not setting.is_tiny else 256
    left, right = (
        torch.randn(size, size, dtype=torch.bfloat16, device=setting.device).mul_(0.1) for _ in range(2)
    )
    seconds = median_seconds(lambda: left @ right, setting)
    return info(f"bf16 product of {size} x {size}", 2 * size**3 / seconds / 1e12, "TFLOP/s")


def median_seconds(call: Callable[[], object], setting: Setting, repeats: int = 7) -> float:
    """Return the median duration of a call, after two warm-up calls."""
    times = []
    for index in range(repeats + 2):
        synchronize(setting)
        start = time.perf_counter()
        call()
        synchronize(setting)
        if index >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronize(setting: Setting) -> None:
    """Wait until the GPU has finished all its work."""
    if setting.is_cuda:
        torch.cuda.synchronize()
