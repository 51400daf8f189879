"""A key-value store of JSON values that the ranks of a job and its servers share."""

import datetime
import json
import os
import socket
from typing import Any, Self

import torch.distributed as dist

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RendezvousStore:
    """JSON values by prefix and key, in the memory of the process that created the store; they are lost with it."""

    def __init__(self, timeout_s: float, *, home: tuple[str, int] | None = None) -> None:
        """Create a store on a free port of all interfaces, or connect to one at the (host, port) `home`.

        Raises:
            RuntimeError: Nothing listened at `home` for `timeout_s` seconds (torch's DistNetworkError).
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
        """TCP port of the store."""
        return self._store.port

    def set(self, prefix: str, key: str, value: object) -> None:
        """Write a value."""
        self._store.set(f"{prefix}/{key}", json.dumps(value))

    def get(self, prefix: str, key: str) -> dict[str, Any] | None:
        """Return a value, or None if it has not been written yet, without waiting."""
        name = f"{prefix}/{key}"
        # A bare `get` of torch's store blocks until the key exists.
        return json.loads(self._store.get(name)) if self._store.check([name]) else None


def master_host() -> str:
    """Return the host of rank 0, or the loopback address in a job of one process."""
    return os.environ.get("MASTER_ADDR", LOOPBACK[0])


def address_towards(host: str) -> str:
    """Return the address of this machine from which connections to `host` originate."""
    if host in LOOPBACK:
        return LOOPBACK[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a UDP socket sends nothing; the kernel only selects the source address for the route.
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
