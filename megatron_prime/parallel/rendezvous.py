"""A small store of JSON values on one process that others of the job, and servers beside it, read and write."""

import datetime
import json
import os
import socket
from typing import Any, Self

import torch.distributed as dist

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RendezvousStore:
    """JSON values by prefix and key; the process that created the store holds it, and it ends with that process."""

    def __init__(self, timeout_s: float, *, home: tuple[str, int] | None = None) -> None:
        """Listen on a free port of all interfaces, or connect to a store at `home`.

        Raises RuntimeError (torch's DistNetworkError) when nobody listens there for timeout_s.
        """
        timeout = datetime.timedelta(seconds=timeout_s)
        host, port = home or ("0.0.0.0", 0)
        self._store = dist.TCPStore(host, port, None, home is None, timeout, wait_for_workers=False)

    @classmethod
    def at(cls, host: str, port: int, timeout_s: float) -> Self:
        """Connect to the store of another process."""
        return cls(timeout_s, home=(host, port))

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._store.port

    def set(self, prefix: str, key: str, value: object) -> None:
        """Write a value."""
        self._store.set(f"{prefix}/{key}", json.dumps(value))

    def get(self, prefix: str, key: str) -> dict[str, Any] | None:
        """Return a value, or None when it has not been written yet. Never waits."""
        name = f"{prefix}/{key}"
        return json.loads(self._store.get(name)) if self._store.check([name]) else None


def master_host() -> str:
    """Return rank 0's host, where the ranks of the job meet; the loopback address in a job of one process."""
    return os.environ.get("MASTER_ADDR", LOOPBACK[0])


def address_towards(host: str) -> str:
    """Return the address of this machine that connections to `host` come from."""
    if host in LOOPBACK:
        return LOOPBACK[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing: the kernel names the address that it would send from.
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
