"""Tests of the addresses at which processes of a job meet."""

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from megatron_prime.parallel import rendezvous
from megatron_prime.parallel.rendezvous import (
    LOOPBACK,
    address_towards,
    local_store,
    master_host,
    meeting_address,
)


def test_the_address_towards_this_machine_is_the_loopback_address(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert address_towards(master_host()) == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert master_host() == "node7"


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("127.0.0.1", ["localhost", "127.0.0.1"]),
        # MASTER_ADDR may be this node's address on the network although nobody comes from elsewhere.
        ("10.9.8.7", ["10.9.8.7", "10.9.8.7", "127.0.0.1"]),
    ],
)
def test_a_job_of_one_node_meets_on_the_loopback_address(own, others):
    assert meeting_address(own, others) == "127.0.0.1"


def test_a_job_of_several_nodes_meets_on_the_interface_towards_them(monkeypatch):
    monkeypatch.setattr(rendezvous, "address_towards", lambda host: f"the address towards {host}")
    found = meeting_address("127.0.1.1", ["127.0.1.1", "10.0.0.2"])
    assert found == "the address towards 10.0.0.2"


def test_the_store_of_a_job_on_one_machine_listens_on_the_loopback_address_alone():
    with socket.create_server((LOOPBACK[0], 0)) as probe:
        port = probe.getsockname()[1]
    with ThreadPoolExecutor() as ranks:
        first, second = (ranks.submit(local_store, port, rank, 2, timedelta(seconds=20)) for rank in (0, 1))
        first.result().set("name", "value")
        assert second.result().get("name") == b"value"
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 5)
