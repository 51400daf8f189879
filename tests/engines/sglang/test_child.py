"""The guardian ends what it started, whoever dies first."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_prime.engines.sglang import child
from tests.support import deadlines

FAMILY = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
)
"""A server with a scheduler."""


def start(body, grace="0.5"):
    guardian = subprocess.Popen(
        [sys.executable, child.__file__, grace, sys.executable, "-c", body],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return guardian, psutil.Process(int(guardian.stdout.readline()))


def family_of(server):
    deadline = time.monotonic() + deadlines.seconds(60)
    while not (children := server.children()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [server, *children]


def all_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=deadlines.seconds(10))
    return not alive


def finish(guardian):
    status = guardian.wait(20)
    guardian.stdin.close()
    guardian.stdout.close()
    return status


def test_closing_its_input_ends_all_processes():
    guardian, server = start(FAMILY + "time.sleep(60)")
    family = family_of(server)
    guardian.stdin.close()
    assert finish(guardian) == 128 + signal.SIGTERM
    assert all_gone(family)


def test_a_server_that_ignores_the_request_is_killed(tmp_path):
    ready = tmp_path / "ready"
    guardian, _ = start(
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    while not ready.exists():
        time.sleep(0.02)
    guardian.stdin.close()
    assert finish(guardian) == 128 + signal.SIGKILL


def test_schedulers_end_with_the_main_process():
    guardian, server = start(FAMILY + "time.sleep(60)")
    family = family_of(server)
    server.kill()
    assert finish(guardian) == 128 + signal.SIGKILL
    assert all_gone(family)


def test_the_exit_status_is_passed_on():
    guardian, _ = start("raise SystemExit(7)")
    assert finish(guardian) == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's death signal is Linux's")
def test_the_server_dies_with_a_killed_guardian():
    guardian, server = start("import time; time.sleep(60)")
    os.kill(guardian.pid, signal.SIGKILL)
    finish(guardian)
    assert all_gone([server])


def test_a_terminated_guardian_ends_its_server():
    guardian, server = start("import time; time.sleep(60)")
    guardian.terminate()
    assert finish(guardian) == 128 + signal.SIGTERM
    assert all_gone([server])
