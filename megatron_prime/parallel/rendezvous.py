"""The addresses at which the processes of a job meet."""

import os
import socket
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def master_host() -> str:
    """Return the host of rank 0, or the loopback address in a job of one process."""
    return os.environ.get("MASTER_ADDR", LOOPBACK[0])


def local_store(port: int, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Return the store of a job on one machine, which rank 0 hosts on the loopback address alone. Collective."""
    # Left to itself, torch's store listens on all interfaces. It takes the socket over and closes it.
    listener = socket.create_server((LOOPBACK[0], port)).detach() if rank == 0 else None
    return dist.TCPStore(LOOPBACK[0], port, world_size, rank == 0, timeout, master_listen_fd=listener)


def address_towards(host: str) -> str:
    """Return the address of this machine from which connections to `host` originate."""
    if host in LOOPBACK:
        return LOOPBACK[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a UDP socket sends nothing; the kernel only selects the source address for the route.
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def meeting_address(own: str, others: Sequence[str]) -> str:
    """Return the address of this machine on which to listen for others: the loopback address if all are here.

    Args:
        own: the address that processes on this machine have among `others`.
        others: hosts or addresses of everyone who will connect.
    """
    far = [host for host in others if host != own and host not in LOOPBACK]
    return address_towards(far[0]) if far else LOOPBACK[0]
