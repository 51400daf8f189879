"""The store in which trainer and receivers meet. It has no login, so every value is signed with a key that both have.

A value with a wrong signature is an error. The signature covers the value's name, and each prefix has a key of its own,
so that a signed value does not pass for another one.
"""

import datetime
import hashlib
import hmac
import json
import socket
from typing import Any

import torch.distributed as dist


def derive(key: str, purpose: str) -> str:
    """Return the key for one purpose, from which neither `key` nor the key of another purpose can be computed."""
    return hmac.new(key.encode(), purpose.encode(), hashlib.sha256).hexdigest()


FORGED = "is not from this job: somebody else writes to the store in which the job's processes meet"
"""The words in the text of a ForgedValueError, by which it is known after other processes have passed it on."""


class ForgedValueError(RuntimeError):
    """A value in the store has a wrong signature: somebody else wrote it."""


class SignedStore:
    """JSON values by name in torch's TCPStore, in the memory of the process that hosts it."""

    def __init__(self, raw: dist.Store, key: str, prefix: str = "") -> None:
        self.raw = raw
        """The store itself, without signatures."""
        self.key = key
        self._prefix = prefix

    @classmethod
    def host(cls, address: str, timeout_s: float, key: str) -> "SignedStore":
        """Create a store on a free port of one of this machine's addresses, at which others connect to it."""
        listener = socket.create_server((address, 0))
        port = listener.getsockname()[1]
        # Left to itself, torch's store listens on all interfaces. It takes the socket over and closes it.
        raw = dist.TCPStore(
            address,
            port,
            is_master=True,
            timeout=datetime.timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        return cls(raw, key)

    @classmethod
    def connect(cls, address: str, port: int, timeout_s: float, key: str, prefix: str = "") -> "SignedStore":
        """Connect to the store of another process; `key` is that of the prefix.

        Raises RuntimeError when nothing listens there for `timeout_s` seconds (torch's DistNetworkError).
        """
        timeout = datetime.timedelta(seconds=timeout_s)
        return cls(dist.TCPStore(address, port, is_master=False, timeout=timeout), key, prefix)

    @property
    def address(self) -> str:
        """Address of the store."""
        assert isinstance(self.raw, dist.TCPStore)
        return self.raw.host

    @property
    def port(self) -> int:
        """TCP port of the store."""
        assert isinstance(self.raw, dist.TCPStore)
        return self.raw.port

    def under(self, prefix: str) -> "SignedStore":
        """Return the part of the store whose names have a prefix, with the key of that part."""
        return SignedStore(self.raw, derive(self.key, prefix), f"{self._prefix}{prefix}/")

    def set(self, name: str, value: object) -> None:
        """Write a value."""
        text = json.dumps(value)
        self.raw.set(self._prefix + name, f"{self._signature(name, text)} {text}")

    def get(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return a value, or None if it has not been written yet, without waiting.

        Raises ForgedValueError when the value was written by somebody without the key.
        """
        # A bare `get` of torch's store blocks until the key exists.
        if not self.raw.check([self._prefix + name]):
            return None
        signature, _, text = self.raw.get(self._prefix + name).decode(errors="replace").partition(" ")
        if not hmac.compare_digest(signature.encode(), self._signature(name, text).encode()):
            raise ForgedValueError(
                f"the value of {self._prefix}{name} at {self.address}:{self.port} {FORGED}"
            )
        return json.loads(text)

    def await_value(self, name: str, timeout_s: float) -> Any:  # noqa: ANN401 - any JSON value
        """Wait until a value is written and return it. Raises RuntimeError when it is not within `timeout_s`."""
        self.raw.wait([self._prefix + name], datetime.timedelta(seconds=timeout_s))
        return self.get(name)

    def delete(self, name: str) -> None:
        """Delete a value."""
        self.raw.delete_key(self._prefix + name)

    def for_group(self, name: str) -> dist.Store:
        """Return the store in which the members of a process group exchange their addresses, with signatures."""
        return _GroupStore(self, name)

    def _signature(self, name: str, text: str) -> str:
        return derive(self.key, f"{self._prefix}{name} {text}")


class _GroupStore(dist.Store):
    """A part of a signed store with the methods that torch calls when it makes a gloo group; bytes by key."""

    def __init__(self, signed: SignedStore, name: str) -> None:
        super().__init__()
        self._signed = signed
        self._name = name

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        self._signed.set(f"{self._name}/{key}", bytes(value).decode("latin-1"))

    def get(self, key: str) -> bytes:
        return self._signed.get(f"{self._name}/{key}").encode("latin-1")

    def wait(self, keys: list[str], timeout: datetime.timedelta) -> None:  # type: ignore[override]
        for key in keys:
            self._signed.await_value(f"{self._name}/{key}", timeout.total_seconds())
