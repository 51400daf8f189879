"""A request to stop comes by a signal or by a file, and is not forgotten."""

import os
import signal

import pytest

from megatron_prime.training.stop import STOP_FILE, STOP_SIGNAL, StopRequest


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(STOP_SIGNAL)
    yield
    signal.signal(STOP_SIGNAL, before)


def test_the_signal_asks(monkeypatch):
    monkeypatch.delenv(STOP_FILE, raising=False)
    request = StopRequest()
    assert not request()
    os.kill(os.getpid(), STOP_SIGNAL)
    assert request() and request()


def test_the_file_asks(monkeypatch, tmp_path):
    path = tmp_path / "stop"
    monkeypatch.setenv(STOP_FILE, str(path))
    request = StopRequest()
    assert not request()
    path.touch()
    assert request()
    path.unlink()
    assert request(), "it is not taken back"
