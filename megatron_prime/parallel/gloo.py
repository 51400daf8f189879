"""Gloo groups that share one device, so that the idle groups of a process cost no processor time."""

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

_devices: tuple[int, list[Any]] | None = None
"""The process that made the devices, and the devices."""


class SharedDeviceGroup(dist.ProcessGroupGloo):
    """A gloo group that communicates through the devices of its process: one, or one per interface.

    A device is a thread that waits for sockets, and wakes up a hundred times a second. torch makes one for each group,
    and Megatron makes dozens of groups: without sharing, a small model's rank spends a third of its processor time on
    these threads.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timeout
        options._devices = _shared_devices()
        options._threads = 2 * len(options._devices)  # as torch
        super().__init__(store, rank, size, options)  # type: ignore[arg-type, call-arg]


def install() -> None:
    """Let all gloo groups that torch makes from now on share their devices."""
    distributed_c10d.ProcessGroupGloo = SharedDeviceGroup  # type: ignore[misc]


def _shared_devices() -> list[Any]:
    """Return the devices of this process. A process that was forked has no threads of its parent's devices."""
    global _devices
    if _devices is None or _devices[0] != os.getpid():
        # torch reads this variable only where it makes the devices of a group itself.
        interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
        make = dist.ProcessGroupGloo
        devices = [make.create_device(interface=name) for name in interfaces]
        _devices = os.getpid(), devices or [make.create_default_device()]
    return _devices[1]
