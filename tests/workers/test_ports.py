"""Ports are free, and none that the system gives to outgoing connections."""

import random
import socket

import pytest

from megatron_prime.workers import ports
from megatron_prime.workers.ports import free_port


def test_a_port_is_free_and_not_for_outgoing_connections():
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first_outgoing = int(file.read().split()[0])
    for _ in range(20):
        port = free_port()
        assert 1024 < port < first_outgoing
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_not_chosen(monkeypatch):
    with socket.create_server(("127.0.0.1", free_port())) as server:
        used, other = server.getsockname()[1], free_port()
        choices = iter([used, used, other])
        monkeypatch.setattr(ports, "_choose", lambda *_: next(choices))
        assert free_port() == other


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")


def test_seeded_numbers_stay_as_they_are():
    random.seed(3)
    before = random.getstate()
    free_port()
    assert random.getstate() == before
