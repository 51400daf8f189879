"""Offloading moves bytes from the device to the host, without any."""

from datetime import timedelta

import torch

from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.platform import RehearsedPlatform


def test_host_buffers_are_counted_as_host_memory():
    ledger = Ledger("meta", lambda: "phase", lambda: "here")
    platform = RehearsedPlatform(
        torch.device("meta"), "nccl", torch.bfloat16, timedelta(seconds=1), ledger=ledger, is_gpu=True
    )
    device = torch.empty(3 << 20, dtype=torch.uint8, device="meta")
    ledger.see(device.untyped_storage())
    buffers = platform.host_buffers(3 << 20)
    pairs = list(zip(buffers, device.split([len(buffer) for buffer in buffers]), strict=True))
    platform.copy_to_host(pairs).synchronize()
    platform.copy_to_device([(device, host) for host, device in pairs])
    platform.synchronize()
    assert platform.is_cuda
    assert (ledger.live, ledger.host_bytes) == (3 << 20, 3 << 20)
    assert platform.peak_memory_bytes() == 3 << 20
