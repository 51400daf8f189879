"""Tests of the shared store, and of the address by which others reach this machine."""

import time

import pytest

from megatron_prime.parallel.rendezvous import RendezvousStore, address_towards, master_host
from tests.support import deadlines


def test_other_processes_read_written_values_without_waiting():
    store = RendezvousStore(5)
    other = RendezvousStore.at("127.0.0.1", store.port, 5)
    assert store.port > 0 and other.get("a", "key") is None
    store.set("a", "key", {"x": [1, "y"]})
    assert _soon(lambda: other.get("a", "key"), not_this=None) == {"x": [1, "y"]}
    assert other.get("b", "key") is None
    other.set("a", "key", {"x": 2})
    assert _soon(lambda: store.get("a", "key"), not_this={"x": [1, "y"]}) == {"x": 2}


def _soon(read, not_this):
    """Retry a read, because the store may apply a value after `set` has returned."""
    deadline = time.monotonic() + deadlines.seconds(60)
    while (value := read()) == not_this and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def test_a_missing_store_is_an_error():
    port = RendezvousStore(5).port
    with pytest.raises(RuntimeError):
        RendezvousStore.at("127.0.0.1", port, 1)


def test_the_address_towards_this_machine_is_the_loopback_address(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert address_towards(master_host()) == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert master_host() == "node7"
