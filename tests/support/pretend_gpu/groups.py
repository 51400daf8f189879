"""Process groups of a job on GPUs: NCCL's are gloo's here, and those that were asked for as gloo are of the host."""

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from tests.support.pretend_gpu.device_answers import device
from tests.support.pretend_gpu.findings import FOUND, Kind

_host_groups: set[str] = set()


def is_host_group(group: dist.ProcessGroup | None) -> bool:
    """Return whether a group communicates in host memory, by its name; None is the job's own group."""
    return group is not None and group.group_name in _host_groups


def install(silence: Callable[[], Any]) -> None:
    """Replace the functions of torch.distributed that depend on the backend.

    Args:
        silence: context in which operations are not looked at: gloo copies some results when they are waited for.
    """
    init, new_group, barrier, wait = dist.init_process_group, dist.new_group, dist.barrier, dist.Work.wait

    @functools.wraps(init)
    def init_process_group(backend: str | None = None, *arguments: Any, **named: Any) -> None:
        init("gloo" if backend == "nccl" else backend, *arguments, **named)

    @functools.wraps(new_group)
    def new_group_of(
        ranks: Any = None, timeout: Any = None, backend: str | None = None, *arguments: Any, **named: Any
    ) -> Any:
        group = new_group(ranks, timeout, "gloo", *arguments, **named)
        if backend == "gloo" and isinstance(group, dist.ProcessGroup):
            _host_groups.add(group.group_name)
        return group

    @functools.wraps(barrier)
    def barrier_of(group: Any = None, async_op: bool = False, **_: Any) -> Any:
        if not is_host_group(group):
            FOUND.note(Kind.WAIT, "barrier()")
        return barrier(group, async_op)

    @functools.wraps(wait)
    def wait_for(work: Any, *arguments: Any, **named: Any) -> Any:
        with silence():
            return wait(work, *arguments, **named)

    dist.Work.wait = wait_for
    dist.init_process_group = init_process_group
    dist.new_group = new_group_of
    dist.barrier = barrier_of
    dist.get_backend = lambda group=None: "gloo" if is_host_group(group) else "nccl"
    distributed_c10d._get_object_coll_device = lambda group=None: (
        "cpu" if is_host_group(group) else str(device())
    )
