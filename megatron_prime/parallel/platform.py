"""The machine under a run: device, communication backend, number type, memory. The only user of torch.cuda."""

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from megatron_prime.observability.metrics import peak_resident_bytes

MEGATRONS_OWN_WARNINGS = (
    r".*full scope is deprecated",
    # torch's names of the collectives that megatron-core 0.16.1 calls
    r".*torch\.distributed\.(reduce_scatter|all_gather_into)_tensor.* is deprecated",
    # the distributed optimizer keeps fp32 shards as views of their parameters
    r".*\.grad attribute of a Tensor that is not a leaf Tensor",
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Platform:
    """What differs between two CPU cores and a node of GPUs."""

    device: torch.device
    backend: Literal["gloo", "nccl"]
    dtype: torch.dtype
    timeout: timedelta

    @property
    def is_cuda(self) -> bool:
        """True on GPUs."""
        return self.device.type == "cuda"

    def peak_memory_bytes(self) -> int:
        """Most memory held so far: allocated on the GPU, or resident in the process on a CPU."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()

    def reset_peak_memory(self) -> None:
        """Begin `peak_memory_bytes` anew, on a GPU; a process cannot forget what it held."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def synchronize(self) -> None:
        """Wait for what a GPU has been given to do."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def host_buffer(self, num_bytes: int) -> torch.Tensor:
        """Host memory as a flat uint8 tensor: pinned on a GPU platform, so that copies run beside the host."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.is_cuda)

    def start_process_group(self) -> None:
        """Join the job that torchrun's (or Slurm's) environment describes; a lone process is a job of one.

        Raises ValueError when the environment is half set.
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
        dist.init_process_group(self.backend, timeout=self.timeout)


def num_gpus() -> int:
    """GPUs that torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def select_platform(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    threads_per_process: int = 1,
    timeout_s: float = 600.0,
) -> Platform:
    """Choose the platform and prepare this process for it.

    Raises ValueError when `cuda` is asked for and torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "platform.device = 'cuda', but torch sees no GPU: use 'auto' or 'cpu', or install a CUDA torch"
        )
    for message in MEGATRONS_OWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    timeout = timedelta(seconds=timeout_s)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        index = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(index)
        return Platform(torch.device("cuda", index), "nccl", DTYPES[dtype], timeout)
    from megatron_prime.parallel import cpu_shim

    cpu_shim.install()
    torch.set_num_threads(threads_per_process)
    return Platform(torch.device("cpu"), "gloo", DTYPES[dtype], timeout)
