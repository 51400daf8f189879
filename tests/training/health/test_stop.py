"""A signal or a file requests a stop, and the request persists. A run that is starting ends at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from megatron_prime.training.health.stop import (
    AT_ONCE_CODE,
    EXIT_CODE,
    SIGNALS,
    STOP_FILE,
    STOP_SIGNAL,
    StopRequest,
    listen,
    stop_listening,
)
from tests.support import deadlines
from tests.support.toy_runs import environment

BEGIN = """
import hashlib, os, signal, sys, time
from megatron_prime.training.health.stop import listen
asked = listen()
"""
STARTING = BEGIN + "print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
IN_C = BEGIN + "asked.defer(); print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
RUNNING = BEGIN + "asked.defer(); print('ready', flush=True); sys.stdin.read(); print(asked()); sys.exit(75)"
IN_A_FORK = BEGIN + (
    "asked.defer(); child = os.fork() or signal.pause(); os.kill(child, {number}); "
    "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -{number}; time.sleep(0.2); print(asked())"
)


@pytest.fixture
def request_to_stop(monkeypatch, tmp_path) -> Iterator[StopRequest]:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    former = {number: signal.getsignal(number) for number in SIGNALS}
    request = listen()
    request.defer()
    assert listen() is request, "a process has one"
    yield request
    stop_listening()
    stop_listening()
    assert {number: signal.getsignal(number) for number in SIGNALS} == former


def test_a_file_requests_a_stop(request_to_stop, tmp_path):
    assert not request_to_stop()
    (tmp_path / "stop").touch()
    assert request_to_stop()
    (tmp_path / "stop").unlink()
    assert request_to_stop(), "a request persists"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_requests_a_stop(request_to_stop, number):
    assert not request_to_stop()
    os.kill(os.getpid(), number)
    deadlines.wait_until(request_to_stop, 5)
    assert request_to_stop() and request_to_stop.number == number


@pytest.mark.parametrize(
    ("program", "numbers", "code", "words"),
    [
        *(
            (STARTING, [number], EXIT_CODE, "nothing is lost, the same command starts it")
            for number in SIGNALS
        ),
        *((RUNNING, [number], EXIT_CODE, "stopping after the current step") for number in SIGNALS),
        (RUNNING, [signal.SIGTERM, signal.SIGTERM], EXIT_CODE, "stopping after the current step"),
        (RUNNING, [signal.SIGINT, signal.SIGTERM], EXIT_CODE, "stopping after the current step"),
        (IN_C, [signal.SIGINT, signal.SIGINT], AT_ONCE_CODE, "continues from the newest checkpoint"),
        (IN_C, [signal.SIGTERM, signal.SIGINT], AT_ONCE_CODE, "continues from the newest checkpoint"),
        (IN_C, [STOP_SIGNAL, signal.SIGINT], AT_ONCE_CODE, "continues from the newest checkpoint"),
    ],
)
def test_what_signals_lead_to(program, numbers, code, words):
    """Even while the main thread is in a call that no signal interrupts."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        said = ""
        for number in numbers:
            process.send_signal(number)
            # Two signals of the same number that are both pending count once: wait until the first was received.
            said = said or process.stderr.readline()
        out, err = process.communicate(timeout=deadlines.seconds(20))
    assert process.returncode == code
    assert words in said + err
    assert out == ("True\n" if program == RUNNING else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_fork_ends_the_fork_and_is_no_request(number):
    code = IN_A_FORK.format(number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
