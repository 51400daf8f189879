"""Groups of one process share a device, exchange data through it, and use another one after a fork."""

import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_prime.parallel import gloo
from megatron_prime.parallel.gloo import SharedDeviceGroup

TIMEOUT = timedelta(seconds=60)


@pytest.fixture(autouse=True)
def no_device(monkeypatch):
    monkeypatch.setattr(gloo, "_devices", None)


def pair() -> list[dist.ProcessGroupGloo]:
    """Return a group of two ranks, both in this process."""
    store, members = dist.HashStore(), {}

    def join(rank):
        members[rank] = SharedDeviceGroup(store, rank, 2, TIMEOUT)

    thread = threading.Thread(target=join, args=(1,))
    thread.start()
    join(0)
    thread.join()
    return [members[0], members[1]]


def sums(members) -> list[float]:
    """Return the result of each rank of a sum of 1 and 2."""
    numbers = [torch.tensor([float(rank + 1)]) for rank in range(len(members))]
    works = [member.allreduce([number]) for member, number in zip(members, numbers, strict=True)]
    for work in works:
        work.wait()
    return [number.item() for number in numbers]


def threads() -> set[str]:
    """Return the ids of this process's threads."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


def test_another_group_adds_no_thread_that_waits_for_sockets():
    first = pair()
    with_one = threads()
    second = pair()
    # The new ones are counted, because a thread of an earlier test may just be ending.
    assert len(threads() - with_one) == 2 * 2, "each member has two threads that carry out its operations"
    assert sums(first) == sums(second) == [3.0, 3.0]


def test_the_end_of_a_group_does_not_disturb_another_one():
    first, second = pair(), pair()
    del first
    assert sums(second) == [3.0, 3.0]


def test_a_forked_process_has_a_device_of_its_own():
    kept = pair()
    child = os.fork()
    if child == 0:
        os._exit(0 if sums(pair()) == [3.0, 3.0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sums(kept) == [3.0, 3.0]


def test_the_interfaces_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,lo")
    assert sums(pair()) == [3.0, 3.0]
    assert len(gloo._shared_devices()) == 2
    monkeypatch.setattr(gloo, "_devices", None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none7")
    with pytest.raises(RuntimeError, match="none7"):
        SharedDeviceGroup(dist.HashStore(), 0, 1, TIMEOUT)
