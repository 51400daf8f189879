"""The time that a gloo connection between two processes takes for some bytes, and nothing else: the floor of a sync."""

import multiprocessing
import time
from multiprocessing.connection import Connection

import torch

from megatron_prime.engines.sglang.loader.signing import SignedStore
from megatron_prime.engines.sglang.loader.wire import exchange, make_group

_TIMEOUT_S = 60.0
_MESSAGE = 64 << 20
"""Bytes of a message: larger transfers are several, as the slices of a model are."""


class Floor:
    """Two processes, of which the other receives what this one sends."""

    def __init__(self) -> None:
        store = SignedStore.host("127.0.0.1", _TIMEOUT_S, "key")
        self._pipe, other = multiprocessing.Pipe()
        # A new process: torch's threads do not survive a fork.
        self._process = multiprocessing.get_context("spawn").Process(
            target=_receive, args=(other, store.port), daemon=True
        )
        self._process.start()
        self._group = make_group("gloo", store, "floor", 0, 2, _TIMEOUT_S)

    def seconds(self, num_bytes: int) -> float:
        """Send so many bytes; return the time until the other process has them."""
        content = torch.ones(num_bytes, dtype=torch.uint8)
        self._pipe.send(num_bytes)
        self._pipe.recv()
        start = time.perf_counter()
        exchange(self._group, [(1, part) for part in content.split(_MESSAGE)], [], "gloo", _TIMEOUT_S)
        self._pipe.recv()
        return time.perf_counter() - start

    def close(self) -> None:
        """End the other process."""
        self._pipe.send(0)
        self._process.join()


def copy_seconds(num_bytes: int) -> float:
    """Return the time of one copy of so many bytes in memory."""
    content, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    start = time.perf_counter()
    target.copy_(content)
    return time.perf_counter() - start


def _receive(pipe: Connection, port: int) -> None:
    torch.set_num_threads(1)
    store = SignedStore.connect("127.0.0.1", port, _TIMEOUT_S, "key")
    group = make_group("gloo", store, "floor", 1, 2, _TIMEOUT_S)
    while num_bytes := pipe.recv():
        content = torch.zeros(num_bytes, dtype=torch.uint8)
        pipe.send("ready")
        exchange(group, [], [(0, part) for part in content.split(_MESSAGE)], "gloo", _TIMEOUT_S)
        pipe.send("done")
