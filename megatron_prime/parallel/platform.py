"""The platform of a run: device, communication backend, dtype and memory. The only module that uses torch.cuda."""

import importlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.distributed as dist

from megatron_prime.observability.metrics import peak_resident_bytes
from megatron_prime.parallel.rendezvous import LOOPBACK, local_store

# Warnings that no option of this project can avoid, and that every rank would print.
MEGATRONS_OWN_WARNINGS = (
    r".*full scope is deprecated",
    # torch's names of the collectives that megatron-core 0.16.1 calls
    r".*torch\.distributed\.(reduce_scatter|all_gather_into)_tensor.* is deprecated",
    # the distributed optimizer keeps fp32 shards as views of their parameters
    r".*\.grad attribute of a Tensor that is not a leaf Tensor",
)
MEMORY_HISTORY_ENTRIES = 200_000
"""Largest number of allocations and releases in a snapshot: those of a whole step of a small model, about 100 MB."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CopyMark(Protocol):
    """A marker for the end of asynchronous copies, such as a CUDA event."""

    def synchronize(self) -> None:
        """Block the host until the copies are done."""
        ...


@dataclass(frozen=True)
class Platform:
    """The device-dependent settings and operations, for a CPU machine or one GPU of a node."""

    device: torch.device
    backend: Literal["gloo", "nccl"]
    dtype: torch.dtype
    timeout: timedelta
    layers: Literal["torch", "transformer_engine"] = "torch"
    """Library whose linear layers, norms and attention models use."""
    layers_reason: str = ""
    """Reason why `auto` did not choose Transformer Engine on a GPU; empty otherwise."""

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """Compute capability of the GPU, e.g. (9, 0) for Hopper; None on a CPU."""
        return torch.cuda.get_device_capability(self.device) if self.is_cuda else None

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        """CUDA version that torch was built with; None for a CPU build."""
        version = torch.version.cuda
        if version is None:
            return None
        major, minor = version.split(".")[:2]
        return int(major), int(minor)

    @property
    def is_cuda(self) -> bool:
        """True on GPUs."""
        return self.device.type == "cuda"

    @property
    def gpu_memory_bytes(self) -> int:
        """Memory of the GPU in bytes; 0 on a CPU."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.is_cuda else 0

    def peak_memory_bytes(self) -> int:
        """Return the peak memory so far: allocated on the GPU, or resident in the process on a CPU."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()

    def reset_peak_memory(self) -> None:
        """Reset the statistics of `peak_memory_bytes` on a GPU; the peak of a CPU process cannot be reset."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def synchronize(self) -> None:
        """Block until the GPU has finished all queued work; return at once on a CPU."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def host_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        """Allocate host memory as flat uint8 tensors whose sizes add up to `num_bytes`.

        On a GPU platform the memory is pinned, so that copies are asynchronous, and split by `unrounded_sizes`.
        """
        sizes = unrounded_sizes(num_bytes) if self.is_cuda else [num_bytes]
        return [torch.empty(size, dtype=torch.uint8, pin_memory=self.is_cuda) for size in sizes]

    def copy_to_host(
        self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], after: CopyMark | None = None
    ) -> CopyMark | None:
        """Copy each (host, device) pair of tensors to the host; on a GPU asynchronously, on a stream for copies.

        The copies run after all work queued on the current stream so far, and after `after`. The device tensors must
        not be written after the call, but they may be freed: torch's allocator does not reuse their memory before the
        copies are finished.

        Returns:
            A marker for the end of the copies; None on a CPU, where they are finished on return.
        """
        if not self.is_cuda:
            for host, device in pairs:
                host.copy_(device)
            return None
        copy_stream = _copy_stream(self.device)
        copy_stream.wait_stream(torch.cuda.current_stream(self.device))
        _wait(copy_stream, after)
        with torch.cuda.stream(copy_stream):
            for host, device in pairs:
                host.copy_(device, non_blocking=True)
                # Otherwise the allocator could reuse a freed block on the current stream before the copy has read it.
                device.record_stream(copy_stream)
            return copy_stream.record_event()

    def copy_to_device(
        self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], after: CopyMark | None = None
    ) -> CopyMark | None:
        """Copy each (device, host) pair of tensors to the device, after `after`.

        The copies are queued on the current stream, so later work on it sees the data, while copies to the host
        continue in parallel on their own stream.

        Returns:
            A marker for the end of the copies, before which the host tensors must not be written; None on a CPU.
        """
        if not self.is_cuda:
            for device, host in pairs:
                device.copy_(host)
            return None
        current = torch.cuda.current_stream(self.device)
        _wait(current, after)
        for device, host in pairs:
            device.copy_(host, non_blocking=True)
        return current.record_event()

    def release_cached_memory(self) -> None:
        """Return the free memory in torch's cache to the GPU, so that other processes can use it."""
        if self.is_cuda:
            # A block that a pending copy still reads is not free yet, and would stay in the cache.
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def start_memory_history(self) -> None:
        """Record the GPU's allocations, with their stacks, for `stop_memory_history`. On a CPU nothing happens."""
        if self.is_cuda:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_HISTORY_ENTRIES)

    def stop_memory_history(self, file: Path | None) -> None:
        """End the recording, and write it to a file for pytorch.org/memory_viz unless that is None.

        Raises:
            OSError: the file cannot be written. The recording has ended nevertheless.
        """
        if not self.is_cuda:
            return
        try:
            if file is not None:
                torch.cuda.memory._dump_snapshot(str(file))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)

    def start_process_group(self) -> None:
        """Join the job that the environment of torchrun or Slurm describes, or start a job of one process without one.

        Do nothing if a process group exists already.

        Raises:
            ValueError: Only some of the environment variables are set.
        """
        if dist.is_initialized():
            return
        given = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name in os.environ]
        if not given:
            dist.init_process_group(
                self.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=self.timeout
            )
            return
        if len(given) < 4:
            raise ValueError(
                f"the environment sets {', '.join(given)} only: start with torchrun, or unset them for one process"
            )
        # torchrun has a store of its own, which listens before the ranks start.
        is_local = os.environ["MASTER_ADDR"] in LOOPBACK and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
        if is_local:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = local_store(int(os.environ["MASTER_PORT"]), rank, world_size, self.timeout)
            dist.init_process_group(
                self.backend, store=store, rank=rank, world_size=world_size, timeout=self.timeout
            )
        else:
            dist.init_process_group(self.backend, timeout=self.timeout)


def move_together(tensors: Sequence[torch.Tensor], device: torch.device | str) -> list[torch.Tensor]:
    """Return integer tensors of the host on a device.

    To a GPU they go in one copy from pinned memory, which is queued like a kernel. A plain `.to` of each would wait
    until the GPU has finished everything queued before, and would then leave it idle while the host goes on.
    """
    if torch.device(device).type == "cpu":
        return [tensor.to(device) for tensor in tensors]
    packed = torch.cat([tensor.reshape(-1).long() for tensor in tensors]).pin_memory()
    parts = packed.to(device, non_blocking=True).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def unrounded_sizes(num_bytes: int, least: int = 1 << 20) -> list[int]:
    """Split a size into powers of two in descending order, and a remainder below `least`.

    torch's allocator of pinned memory rounds each block up to a power of two, which can nearly double its size.
    """
    sizes = []
    while num_bytes >= least:
        sizes.append(1 << (num_bytes.bit_length() - 1))
        num_bytes -= sizes[-1]
    return [*sizes, num_bytes] if num_bytes or not sizes else sizes


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for copies to the host. All roles share it, because their copies share one link."""
    return torch.cuda.Stream(device)


def _wait(stream: torch.cuda.Stream, mark: CopyMark | None) -> None:
    if mark is not None:
        assert isinstance(mark, torch.cuda.Event), "markers of copies on a GPU are CUDA events"
        stream.wait_event(mark)


def own_gpu() -> torch.device:
    """Make the GPU of this rank the current device, and return it.

    A rank that sees all GPUs of its node takes that of its number. One to which Slurm has given GPUs of its own
    (--gpus-per-task) sees no others; whichever it takes is its own. NCCL refuses two ranks on one GPU.
    """
    index = int(os.environ.get("LOCAL_RANK", "0")) % max(torch.cuda.device_count(), 1)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def nccl_version() -> str | None:
    """Return the version of the NCCL that torch uses, such as 2.29.7; None in a build without."""
    if not dist.is_nccl_available():
        return None
    return ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[attr-defined]


def num_gpus() -> int:
    """Return the number of GPUs that torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def transformer_engine_fault() -> str | None:
    """Import Transformer Engine and return the reason why it cannot be used, or None if it can."""
    try:
        importlib.import_module("transformer_engine.pytorch")
    except ModuleNotFoundError as error:
        # A missing dependency of Transformer Engine raises the same error, but needs another fix.
        if error.name is not None and error.name.split(".")[0] == "transformer_engine":
            return "it is not installed (pip install 'transformer-engine[pytorch]', built for this torch)"
        return f"it does not import ({error})"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"it does not import ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


def select_platform(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    threads_per_process: int = 1,
    timeout_s: float = 600.0,
    layers: Literal["auto", "torch", "transformer_engine"] = "auto",
) -> Platform:
    """Choose the platform and prepare this process for it.

    On a GPU, `layers` = "auto" chooses Transformer Engine if it can be imported; otherwise torch, with the reason in
    `layers_reason`.

    Raises:
        ValueError: `cuda` is requested and torch sees no GPU, or Transformer Engine is requested and cannot be used.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "platform.device = 'cuda', but torch sees no GPU: use 'auto' or 'cpu', or install a CUDA torch"
        )
    for message in MEGATRONS_OWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    timeout = timedelta(seconds=timeout_s)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        gpu = own_gpu()
        chosen, reason = _select_layers(layers)
        from megatron_prime.parallel import adam

        adam.install_without_fused()
        return Platform(gpu, "nccl", DTYPES[dtype], timeout, chosen, reason)
    if layers == "transformer_engine":
        raise ValueError(
            "platform.layers = 'transformer_engine' needs a GPU, and this run is on a CPU: set it to 'auto' or 'torch'"
        )
    # Imported here, because a GPU run must not load the redirection of CUDA calls.
    from megatron_prime.parallel import cpu_shim

    cpu_shim.install()
    torch.set_num_threads(threads_per_process)
    return Platform(torch.device("cpu"), "gloo", DTYPES[dtype], timeout)


def _select_layers(
    requested: Literal["auto", "torch", "transformer_engine"],
) -> tuple[Literal["torch", "transformer_engine"], str]:
    """Return the library of the layers on a GPU, and the reason if "auto" did not choose Transformer Engine."""
    if requested == "torch":
        return "torch", ""
    fault = transformer_engine_fault()
    if fault is None:
        return "transformer_engine", ""
    if requested == "transformer_engine":
        raise ValueError(f"platform.layers = 'transformer_engine', but {fault}")
    return "torch", fault
