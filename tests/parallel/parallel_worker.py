"""Functions that one rank runs in the tests of tests/parallel."""

import os
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_prime.parallel import collectives
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology, with_own_host_group
from tests.logprobs.shard_scores import score_shard
from tests.parallel.context_worker import share_tokens
from tests.parallel.parallel_cases import SPARE_FILES
from tests.parallel.pipeline_worker import run_pipelines
from tests.support.deadlines import seconds
from tests.support.layout_worker import topology_of

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def use_platform():
    """Time out in a collective that one rank misses, then start a process group of one in each process."""
    rank = int(os.environ["RANK"])
    platform = select_platform("cpu", timeout_s=6.0, threads_per_process=1)
    platform.start_process_group()
    platform.start_process_group()  # the second call has no effect
    report = {"job": (dist.get_rank(), dist.get_world_size(), dist.get_backend())}
    dist.barrier()
    started = time.monotonic()
    if rank == 0:
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            report["missed"] = (time.monotonic() - started, str(error))
    else:
        time.sleep(9)
    dist.destroy_process_group()

    bf16 = select_platform("auto" if not torch.cuda.is_available() else "cpu", "bf16", timeout_s=60)
    report["bf16"] = (bf16.device.type, bf16.backend, bf16.dtype, bf16.is_cuda, bf16.timeout.total_seconds())
    report["threads"] = torch.get_num_threads()
    for name in ENVIRONMENT[1:]:
        del os.environ[name]
    try:
        bf16.start_process_group()
    except ValueError as error:
        report["half"] = str(error)
    rank = os.environ.pop("RANK")
    bf16.start_process_group()
    report["alone"] = (dist.get_rank(), dist.get_world_size())
    os.environ["RANK"] = rank  # the runner derives the name of the result file from it
    block = torch.ones(40 << 20, dtype=torch.uint8)
    before = bf16.peak_memory_bytes()
    more = torch.ones(200 << 20, dtype=torch.uint8)
    report["memory"] = (before, bf16.peak_memory_bytes())
    assert len(block) + len(more)
    return report


def use_shim():
    """Return the effects of `install`."""
    from megatron.core import optimizer as megatron_optimizer
    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.tensor_parallel import random as megatron_random

    from megatron_prime.parallel import cpu_shim
    from megatron_prime.parallel.adam import Adam

    type_before = torch.zeros(1).type()
    cpu_shim.install()
    cpu_shim.install()
    torch.cuda.synchronize()
    with torch.device("meta"):  # recognizes the functions that were replaced
        meta = torch.zeros(1).device.type
    return {
        "type": (type_before, torch.zeros(1).type()),
        "device": torch.cuda.current_device(),
        "new": torch.zeros(2, device=torch.cuda.current_device()).device.type,
        "cuda": torch.ones(2, device="cuda").device.type,
        "meta": meta,
        "adam": megatron_optimizer.Adam is Adam and distrib_optimizer.Adam is Adam,
        "tracker": megatron_random.CudaRNGStatesTracker is cpu_shim.CpuRNGStatesTracker,
    }


def _use_topologies(layouts):
    """Return the coordinates and groups of each (tensor, pipeline) layout."""
    platform = select_platform("cpu", timeout_s=90)
    platform.start_process_group()
    report = {}
    for tensor, pipeline in layouts:
        topology = build_topology(platform, tensor, pipeline, sequence_parallel=tensor > 1)
        groups = {
            "tensor": dist.get_process_group_ranks(topology.process_groups.tp),
            "pipeline": dist.get_process_group_ranks(topology.pipeline_group),
            "data": dist.get_process_group_ranks(topology.data_group),
        }
        ones = torch.ones(1)
        dist.all_reduce(ones, group=topology.data_group)
        report[tensor, pipeline] = {
            "rank": topology.rank,
            "world": topology.world_size,
            "sizes": (topology.tensor_size, topology.data_size, topology.pipeline_size),
            "place": (topology.tensor_rank, topology.data_rank, topology.pipeline_rank),
            "ends": (topology.is_first_stage, topology.is_last_stage),
            "groups": groups,
            "last_stage_rank": topology.last_stage_rank,
            "sequence_parallel": topology.sequence_parallel,
            "megatron_tp": dist.get_process_group_ranks(topology.process_groups.tp),
            "sum": ones.item(),
        }
    try:
        build_topology(platform, tensor=3, pipeline=1)
    except ValueError as error:
        report["refused"] = str(error)
    report["streams"] = [_draw_from_parallel_stream(platform, seed) for seed in (0, 0, 1)]
    return report


def use_two_threads():
    """Gather in a thread and in the main thread, in an order that differs between the ranks."""
    topology = build_topology(_platform())
    beside, found = with_own_host_group(topology), {}

    def gather_beside():
        found["thread"] = collectives.all_gather_lists([f"thread {topology.rank}"], beside)

    thread = threading.Thread(target=gather_beside)
    thread.start()
    if topology.rank % 2:
        thread.join()
    found["main"] = collectives.all_gather_lists([f"main {topology.rank}"], topology)
    thread.join()
    return found


def _draw_from_parallel_stream(platform, seed):
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    build_topology(platform, tensor=2, pipeline=1, seed=seed)
    with get_cuda_rng_tracker().fork():
        return torch.rand(4)


def count_resources(layouts, num_rounds):
    """Count threads, file descriptors and child processes of this rank after each build and close of the layouts.

    The first round is a warm-up: torch and gloo keep some threads that the first collective of each kind starts.
    """
    counts = []
    for _ in range(1 + num_rounds):
        for layout in layouts:
            topology = with_own_host_group(topology_of(layout))
            # A model refers to its groups in reference cycles, which only the garbage collector frees.
            cycle = {"groups": topology.process_groups}
            cycle["cycle"] = cycle
            del cycle
            for group in (topology.process_groups.tp, topology.pipeline_group, topology.data_group):
                dist.all_reduce(torch.ones(1), group=group)
            # The loop's own reference would keep the last group alive.
            del group
            built = _resources()
            topology.close()
            counts.append(
                {"layout": layout, "built": built, "closed": _settled(counts), "groups": _num_groups()}
            )
    return counts


def _num_groups():
    return len(dist.distributed_c10d._world.pg_map)


def _settled(counts):
    """Return the resources once they are down to the first count, because sockets close some time after their group."""
    deadline = time.monotonic() + seconds(10)
    now = _resources()
    while counts and time.monotonic() < deadline:
        first = counts[0]["closed"]
        if now["threads"] <= first["threads"] and now["files"] <= first["files"] + SPARE_FILES:
            break
        time.sleep(0.05)
        now = _resources()
    return now


def _resources():
    children = [Path(task, "children").read_text().split() for task in Path("/proc/self/task").iterdir()]
    return {
        "threads": len(children),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "children": sum(map(len, children)),
    }


def use_uneven_ranks():
    """Gather a different number of tokens from each rank, and reduce-scatter the gradients."""
    from megatron.core.tensor_parallel import mappings

    topology = topology_of("tp4")
    sizes = [3, 0, 5, 1]
    rank, group = topology.rank, topology.process_groups.tp
    whole = torch.arange(18.0).view(9, 2)
    mine = whole.split(sizes)[rank].clone().requires_grad_()
    gathered = mappings.gather_from_sequence_parallel_region(mine, group=group, output_split_sizes=sizes)
    weights = (rank + 1) * whole.cos()
    (weights * gathered).sum().backward()
    scattered = mappings.reduce_scatter_to_sequence_parallel_region(
        weights, group=group, input_split_sizes=sizes
    )
    total = (10 * whole.cos()).split(sizes)[rank]
    return {
        "gathered": torch.equal(gathered, whole),
        "gradient": torch.allclose(mine.grad, total),
        "scattered": torch.allclose(scattered, total),
    }


def four_processes(grids, tensor_sizes, cases, layouts, context_cases, resource_layouts):
    """Run the tests of topology, collectives and context parallelism together, to start the processes once."""
    return {
        "topologies": _use_topologies(grids),
        "scores": _score_shards(tensor_sizes, cases),
        "shared": _share_results(layouts),
        "context": share_tokens(_platform(), context_cases),
        "uneven": use_uneven_ranks(),
        "threads": use_two_threads(),
        "pipelines": run_pipelines(_platform()),
        "resources": count_resources(resource_layouts, num_rounds=1),
    }


def _score_shards(tensor_sizes, cases):
    """Return values and gradients of this rank's shard for each case and tensor-parallel size."""
    results = {}
    for tensor in tensor_sizes:
        topology = build_topology(_platform(), tensor)
        for name, case in cases.items():
            results[tensor, name] = _score_shard(topology, **case)
    return results


def _platform():
    platform = select_platform("cpu", timeout_s=90)
    platform.start_process_group()
    return platform


def _score_shard(topology, weight_VH, num_real, **case):
    rows = len(weight_VH) // topology.tensor_size
    first_row = topology.tensor_rank * rows
    scores = score_shard(topology.process_groups.tp, "auto", weight_VH=weight_VH, num_real=num_real, **case)
    return scores | {
        "tensor_rank": topology.tensor_rank,
        "first_row": first_row,
        "num_rows": max(0, min(rows, num_real - first_row)),
    }


def _share_results(layouts):
    """Return the results of the collectives that share values, in each layout."""
    report = {}
    for layout in layouts:
        topology = topology_of(layout)
        # Data rank d owns the rows d, d + D, ...; other stages hold arbitrary values that must be overwritten.
        values = torch.full((8, 3), torch.nan)
        if topology.is_last_stage:
            values.zero_()
            values[topology.data_rank :: topology.data_size] = (
                0.1 * torch.arange(24.0).view(8, 3)[topology.data_rank :: topology.data_size]
            )
        flags = torch.full((2,), float(topology.data_rank + 1))
        collectives.sum_over_data_and_share([values, flags], topology)
        named = {"loss": torch.tensor(0.1 * (topology.data_rank + 1))}
        if topology.data_rank == 0:
            named["first"] = torch.tensor(5.0)
        if not topology.is_last_stage:
            named = {"rubbish": torch.tensor(7.0)}
        report[layout] = {
            "values": values,
            "flags": flags,
            "data_size": topology.data_size,
            "named": collectives.sum_named_over_data_and_share(named, topology),
            "lists": collectives.all_gather_lists([("rank", topology.rank)] * topology.rank, topology),
            "object": collectives.broadcast_object(
                {"from": 0} if topology.rank == 0 else {"from": -1}, topology
            ),
        }
    return report
