"""A signal or a file requests a stop, and the request persists."""

import os
import signal
import subprocess
import sys

import pytest

from megatron_prime.training.health.stop import STOP_FILE, STOP_SIGNAL, StopRequest
from tests.support.toy_runs import environment


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(STOP_SIGNAL)
    yield
    signal.signal(STOP_SIGNAL, before)


def test_a_signal_requests_a_stop(monkeypatch):
    monkeypatch.delenv(STOP_FILE, raising=False)
    request = StopRequest()
    assert not request()
    os.kill(os.getpid(), STOP_SIGNAL)
    assert request() and request()


def test_a_file_requests_a_stop(monkeypatch, tmp_path):
    path = tmp_path / "stop"
    monkeypatch.setenv(STOP_FILE, str(path))
    request = StopRequest()
    assert not request()
    path.touch()
    assert request()
    path.unlink()
    assert request(), "a request persists"


@pytest.mark.parametrize("has_script", [True, False])
def test_sigterm_requests_a_stop_only_under_a_job_script(tmp_path, has_script):
    """Without a job script it ends the process, as usual; it always ends a forked child."""
    code = "import os, signal; from megatron_prime.training.health.stop import StopRequest; asked = StopRequest(); "
    code += "child = os.fork() or signal.pause(); os.kill(child, signal.SIGTERM); "
    code += "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM; "
    code += "os.kill(os.getpid(), signal.SIGTERM); print(asked())"
    changes = {STOP_FILE: str(tmp_path / "stop")} if has_script else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**changes), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == ((0, "True\n") if has_script else (-signal.SIGTERM, ""))
