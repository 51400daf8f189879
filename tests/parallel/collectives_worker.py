"""A rank whose job's own process group computes nothing, like NCCL without a GPU: only the host group works."""

import os
from datetime import timedelta
from types import SimpleNamespace

import torch.distributed as dist

from megatron_prime.parallel import topology
from megatron_prime.parallel.collectives import all_gather_lists, any_rank, broadcast_object


def on_the_host():
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(seconds=60)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, size, is_master=rank == 0, timeout=timeout)
    dist.init_process_group("fake", store=store, rank=rank, world_size=size)
    group = topology._host_group(SimpleNamespace(backend="nccl", timeout=timeout))
    job = SimpleNamespace(rank=rank, world_size=size, host_group=group)
    report = {
        "lists": all_gather_lists([rank] * rank, job),
        "object": broadcast_object({"from": rank}, job),
        "votes": [any_rank(rank == chosen, job) for chosen in (-1, 0, 1)],
        "without NCCL": topology._host_group(SimpleNamespace(backend="gloo", timeout=timeout)),
    }
    # The end of rank 0's store must not precede the end of the others' calls.
    dist.barrier(group=group)
    return report
