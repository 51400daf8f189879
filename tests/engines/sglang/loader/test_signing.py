"""A store whose values are signed, and on the address that it was given alone."""

import socket
import time

import pytest

from megatron_prime.engines.sglang.loader.signing import ForgedValueError, SignedStore
from tests.support import deadlines


@pytest.fixture
def store():
    return SignedStore.host("127.0.0.1", 5, "key")


def test_other_processes_read_written_values_without_waiting(store):
    other = SignedStore.connect(store.address, store.port, 5, "key")
    assert store.port > 0 and other.get("a") is None
    store.set("a", {"x": [1, "y"]})
    assert _soon(lambda: other.get("a"), not_this=None) == {"x": [1, "y"]}
    assert other.get("b") is None
    other.set("a", {"x": 2})
    assert _soon(lambda: store.get("a"), not_this={"x": [1, "y"]}) == {"x": 2}
    assert other.await_value("a", 5) == {"x": 2}
    other.delete("a")
    assert _soon(lambda: store.get("a"), not_this={"x": 2}) is None


def _soon(read, not_this):
    """Retry a read, because the store may apply a value after `set` has returned."""
    deadline = time.monotonic() + deadlines.seconds(60)
    while (value := read()) == not_this and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


@pytest.mark.parametrize(
    "forged",
    [
        lambda store: store.raw.set("a/x", '{"url": "http://evil"}'),
        lambda store: store.raw.set("a/x", ""),
        lambda store: SignedStore(store.raw, "another key").under("a").set("x", 1),
        lambda store: store.raw.set("a/x", store.raw.get("a/y")),
        lambda store: store.raw.set("a/x", store.raw.get("b/x")),
        lambda store: store.raw.set("a/x", store.raw.get("a/y")[:-1] + b"2"),
    ],
    ids=["no signature", "empty", "another key", "another name", "another prefix", "another value"],
)
def test_a_value_without_the_right_signature_is_refused(store, forged):
    store.under("a").set("y", 1)
    store.under("b").set("x", 1)
    forged(store)
    with pytest.raises(
        ForgedValueError, match=f"the value of a/x at 127.0.0.1:{store.port} is not from this job"
    ):
        store.under("a").get("x")


def test_the_store_listens_on_its_address_alone(store):
    socket.create_connection(("127.0.0.1", store.port), 5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port), 5)


def test_a_missing_store_is_an_error(store):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(RuntimeError):
        SignedStore.connect("127.0.0.1", port, 1, "key")
