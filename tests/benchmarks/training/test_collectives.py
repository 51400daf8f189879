"""Collectives are recorded as they were called, and can be repeated."""

import pytest
import torch
import torch.distributed as dist

from benchmarks.training.collectives import num_bytes, recorded, repeated


@pytest.fixture
def _one_rank():
    """Make a default group of one rank, unless an earlier test of this process has left one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
def test_calls_are_recorded_and_repeated_without_their_values():
    function, value = dist.all_reduce, torch.ones(4, 8)
    with recorded() as calls:
        dist.all_reduce(value)
        dist.all_reduce(tensor=value, async_op=True).wait()
        dist.barrier()
    assert dist.all_reduce is function
    assert [each.__name__ for each, _, _ in calls] == ["all_reduce", "all_reduce", "barrier"]
    assert num_bytes(calls) == 2 * value.numel() * 4
    assert min(repeated(calls)) > 0
    assert torch.equal(value, torch.ones(4, 8))
