"""A check with a deadline that all ranks of a job reach each other; it measures throughput and names absent ranks."""

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_prime.parallel.platform import own_gpu

PROBE_BYTES = 16 << 20


@dataclass(frozen=True)
class Reached:
    """The result of the check on one rank."""

    hosts: tuple[str, ...]
    """Host name of every rank."""
    seconds: float
    """Duration of one all-reduce of PROBE_BYTES."""

    @property
    def mb_s(self) -> float:
        """Size of the buffer divided by the duration, in MB/s; a ring all-reduce sends up to twice as much per link."""
        return PROBE_BYTES / self.seconds / 1e6


def meet(timeout_s: float, backend: str = "gloo") -> Reached:
    """Join the job that the environment describes, and all-reduce a buffer over all ranks.

    Raises:
        ConnectionError: Raised within about twice `timeout_s`. It names the ranks that did not arrive, or the error
            between those that did.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=timeout_s)
    try:
        store = dist.TCPStore(address, port, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        # The store comes first, because a process group that cannot be formed does not say which rank is absent.
        hosts = _gather_hosts(store, rank, world_size, timeout_s)
        dist.init_process_group(
            backend, store=dist.PrefixStore("probe", store), rank=rank, world_size=world_size, timeout=timeout
        )
        seconds = _probe(backend)
        dist.barrier()
        dist.destroy_process_group()
    except (RuntimeError, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        raise ConnectionError(
            f"rank {rank} on {socket.gethostname()} cannot work with the others by {backend} "
            f"(rank 0: {address}:{port}): {str(error).splitlines()[0]}"
        ) from error
    return Reached(hosts, seconds)


def _gather_hosts(store: dist.TCPStore, rank: int, world_size: int, timeout_s: float) -> tuple[str, ...]:
    store.set(f"host/{rank}", socket.gethostname())
    deadline = time.monotonic() + timeout_s
    missing = list(range(world_size))
    while missing and time.monotonic() < deadline:
        missing = [other for other in missing if not store.check([f"host/{other}"])]
        if missing:
            time.sleep(0.05)
    if missing:
        raise ConnectionError(
            f"rank {rank} on {socket.gethostname()} waited {timeout_s:.0f} s for ranks "
            f"{', '.join(map(str, missing))} of {world_size}: were they started, and do they reach rank 0?"
        )
    return tuple(store.get(f"host/{other}").decode() for other in range(world_size))


def _probe(backend: str) -> float:
    device = own_gpu() if backend == "nccl" else "cpu"
    buffer = torch.ones(PROBE_BYTES // 4, device=device)
    dist.all_reduce(buffer)  # The first all-reduce opens the connections; the second one is timed.
    started = time.monotonic()
    dist.all_reduce(buffer)
    if float(buffer[-1]) != float(dist.get_world_size()) ** 2:
        raise RuntimeError("an all-reduce gave a wrong sum")
    return time.monotonic() - started
