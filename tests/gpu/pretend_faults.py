"""Faults planted in a process with a pretended GPU, each of which must be found, and code that is free of them."""

import pickle
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_prime.observability import heartbeat
from megatron_prime.parallel.platform import Platform, move_together, select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.training.residency import Part, Residency
from tests.support.pretend_gpu import machine
from tests.support.pretend_gpu.findings import FOUND, Kind
from tests.support.pretend_gpu.operation_watch import OffloadedReadError

Found = list[tuple[str, str, str, int]]
"""(phase, kind, function of the place, count) of each finding."""
PHASE = "policy"


class Planted:
    """The faults, as methods; each returns nothing and is one finding of the kind in FAULTS."""

    def __init__(self, platform: Platform, host_group: dist.ProcessGroup) -> None:
        self._platform = platform
        self._host_group = host_group
        self._gpu = torch.arange(4.0, device=platform.device)
        self._places = torch.ones(2, dtype=torch.int64, device=platform.device)
        self._mask = self._gpu > 1

    def mixed_addition(self) -> None:
        assert len(self._gpu + torch.ones(4))

    def mixed_concatenation(self) -> None:
        torch.stack([self._gpu[0], torch.zeros(())])

    def host_tensor_in_a_device_collective(self) -> None:
        dist.all_reduce(torch.ones(1))

    def device_tensor_in_a_host_collective(self) -> None:
        dist.all_reduce(self._gpu, group=self._host_group)

    def item_in_a_loop(self) -> None:
        assert sum(value.item() for value in self._gpu[:1]) == 0

    def truth_of_a_tensor(self) -> None:
        assert self._mask.any()

    def comparison(self) -> None:
        torch.equal(self._gpu, self._gpu)

    def boolean_index(self) -> None:
        assert len(self._gpu[self._mask]) == 2

    def list_of_a_tensor(self) -> None:
        self._gpu.tolist()

    def wait_for_everything(self) -> None:
        torch.cuda.synchronize()

    def blocking_copy_to_the_host(self) -> None:
        self._gpu.cpu()

    def blocking_copy_into_host_memory(self) -> None:
        torch.empty(4).copy_(self._gpu)

    def blocking_copy_to_the_device(self) -> None:
        torch.ones(4).to(self._platform.device)

    def tensor_of_a_list(self) -> None:
        torch.tensor([1.0], device=self._platform.device)

    def index_in_host_memory(self) -> None:
        assert len(self._gpu[torch.tensor([1, 2])]) == 2

    def pageable_copy_to_the_device(self) -> None:
        torch.ones(4).to(self._platform.device, non_blocking=True)

    def numpy_of_a_device_tensor(self) -> None:
        self._gpu.numpy()

    def host_values_at_device_indices(self) -> None:
        self._gpu[self._places] = torch.ones(2)

    def device_index_of_a_host_tensor(self) -> None:
        torch.ones(3)[self._places]

    def pickled_device_tensor(self) -> None:
        pickle.dumps(self._gpu)

    def read_of_an_offloaded_tensor(self) -> None:
        weight = self._gpu.clone()
        Residency(self._platform, {"weights": Part(lambda: [weight])}, ["weights"]).park()
        try:
            weight.sum()
        except OffloadedReadError:
            return
        raise AssertionError("the read did not stop")

    def host_copy_read_before_it_has_arrived(self) -> None:
        (host,) = self._platform.host_buffers(16)
        self._platform.copy_to_host([(host, self._gpu.view(torch.uint8))])
        host.sum()

    def host_memory_overwritten_while_it_is_copied(self) -> None:
        (host,) = self._platform.host_buffers(16)
        self._platform.copy_to_device([(self._gpu.clone().view(torch.uint8), host)])
        host.zero_()

    def none_by_waiting_for_a_copy(self) -> None:
        (host,) = self._platform.host_buffers(16)
        mark = self._platform.copy_to_host([(host, self._gpu.view(torch.uint8))])
        assert mark is not None
        with FOUND.recording():
            mark.synchronize()
        assert host.view(torch.float32).tolist() == self._gpu_values()

    def none_by_numbers_and_masks(self) -> None:
        values = self._gpu * 2 + torch.tensor(1.0)
        values[0] = 5.0
        values[self._mask] = 0.0
        assert values.is_cuda and values.new_zeros(3).is_cuda and not torch.zeros(3).is_cuda

    def none_by_moving_together(self) -> None:
        moved = move_together([torch.arange(3), torch.ones(2, 2, dtype=torch.int32)], self._platform.device)
        assert [(m.is_cuda, m.dtype, tuple(m.shape)) for m in moved] == [
            (True, torch.int64, (3,)),
            (True, torch.int32, (2, 2)),
        ]

    def none_by_offloading_and_restoring(self) -> None:
        weight = self._gpu.clone()
        residency = Residency(self._platform, {"weights": Part(lambda: [weight])}, ["weights"])
        residency.park()
        weight.view(2, 2)
        with residency.hold():
            weight.add_(1)

    def none_in_collectives_of_each_kind(self) -> None:
        dist.all_reduce(self._gpu)
        dist.all_reduce(torch.ones(1), group=self._host_group)
        dist.all_gather_object([None], "text", group=self._host_group)

    def none_in_a_backward_pass(self) -> None:
        weight = self._gpu.clone().requires_grad_()
        (_Checked.apply(weight) * 2).sum().backward()  # type: ignore[union-attr]
        assert weight.grad is not None and weight.grad.is_cuda

    def _gpu_values(self) -> list[float]:
        with FOUND.recording():
            return self._gpu.tolist()


class _Checked(torch.autograd.Function):
    """The identity, which looks at its device in both directions."""

    @staticmethod
    def forward(ctx, values):
        assert values.is_cuda
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        assert grad.is_cuda and torch.zeros(1, device=grad.device).is_cuda
        return grad


FAULTS = {
    "mixed_addition": Kind.MIXED,
    "mixed_concatenation": Kind.MIXED,
    "host_values_at_device_indices": Kind.MIXED,
    "device_index_of_a_host_tensor": Kind.MIXED,
    "host_tensor_in_a_device_collective": Kind.HOST_IN_DEVICE_GROUP,
    "device_tensor_in_a_host_collective": Kind.DEVICE_IN_HOST_GROUP,
    "numpy_of_a_device_tensor": Kind.HOST_VIEW,
    "pickled_device_tensor": Kind.PICKLED,
    "read_of_an_offloaded_tensor": Kind.OFFLOADED,
    "host_copy_read_before_it_has_arrived": Kind.UNFINISHED,
    "host_memory_overwritten_while_it_is_copied": Kind.UNFINISHED,
    "item_in_a_loop": Kind.WAIT,
    "truth_of_a_tensor": Kind.WAIT,
    "comparison": Kind.WAIT,
    "boolean_index": Kind.WAIT,
    "list_of_a_tensor": Kind.WAIT,
    "wait_for_everything": Kind.WAIT,
    "blocking_copy_to_the_host": Kind.COPY_TO_HOST,
    "blocking_copy_into_host_memory": Kind.COPY_TO_HOST,
    "blocking_copy_to_the_device": Kind.COPY_TO_DEVICE,
    "tensor_of_a_list": Kind.COPY_TO_DEVICE,
    "index_in_host_memory": Kind.COPY_TO_DEVICE,
    "pageable_copy_to_the_device": Kind.PAGEABLE,
}
"""Method of Planted -> the kind of its only finding."""
SOUND = [name for name in vars(Planted) if name.startswith("none_")]
"""Methods without a finding."""


def plant() -> dict[str, Found]:
    """Return the findings of every method of Planted, in a job of one process."""
    machine.install()
    platform = select_platform("cuda", timeout_s=60.0)
    assert (platform.device.type, platform.backend, platform.is_cuda) == ("cuda", "nccl", True)
    platform.start_process_group()
    topology = build_topology(platform)
    assert topology.host_group is not None and platform.timeout == timedelta(seconds=60)
    planted, found = Planted(platform, topology.host_group), {}
    for name in [*FAULTS, *SOUND]:
        method: Callable[[], None] = getattr(planted, name)
        with FOUND.recording() as counts, heartbeat.phase(PHASE):
            method()
        found[name] = [
            (finding.phase, finding.kind.value, finding.place.rpartition(" ")[2], count)
            for finding, count in counts.items()
        ]
    return found
