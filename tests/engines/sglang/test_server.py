"""A server is restarted, given up after too many deaths, and leaves no process behind, whoever is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from megatron_prime.engines.sglang import server as sglang_server
from megatron_prime.engines.sglang.server import ServerFailedError, SupervisedServer, answers
from megatron_prime.workers.ports import free_port
from tests.engines.sglang.tiny_plan import tiny_plan
from tests.support import deadlines
from tests.support.forked_commands import FORKED
from tests.support.sglang_live import ROOT, engine_python

ZOMBIE = psutil.STATUS_ZOMBIE


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts supervised tiny servers and closes them."""
    monkeypatch.setattr(sglang_server, "GRACE_S", 0.5)
    started = []

    def start_one(mode="", on_event=lambda text: None, may_start=None, cores=(), **settings):
        plan, log = replace(tiny_plan(mode, **settings), cores=cores), tmp_path / "logs" / "log"
        server = SupervisedServer(plan, 0, log, on_event=on_event, may_start=may_start)
        started.append(server)
        return server

    yield start_one
    for server in started:
        server.close()


def wait_for(condition, seconds=300):
    return deadlines.wait_until(condition, seconds)


def test_a_server_starts_and_ends(start):
    server = start()
    url = wait_for(lambda: server.url)
    process = psutil.Process(server.pid)
    assert answers(url) and server.num_starts == 1
    server.close()
    server.close()
    assert not process.is_running() and not answers(url)
    assert server.url is None and server.pid is None


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process has one core")
def test_a_server_has_the_cores_of_the_job_although_its_rank_is_bound_to_one(start):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        bound, free = start(), start(cores=tuple(cores))
        found = {server: wait_for(lambda s=server: s.url) and server.pid for server in (bound, free)}
        assert os.sched_getaffinity(found[bound]) == os.sched_getaffinity(0) == {min(cores)}
        assert os.sched_getaffinity(found[free]) == cores
    finally:
        os.sched_setaffinity(0, cores)


def test_a_killed_server_is_started_again(start):
    events = []
    server = start(on_event=events.append)
    wait_for(lambda: server.url)
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.num_starts == 2)
    assert answers(server.url)
    assert len(events) == 1 and "restart 1 of at most 3" in events[0]
    server.raise_if_failed()


def test_a_server_that_ends_while_the_trainer_has_the_memory_starts_only_afterwards(start):
    may_start = threading.Event()
    server = start(may_start=may_start)
    time.sleep(0.5)
    assert server.pid is None, "it has not started"
    may_start.set()
    wait_for(lambda: server.url)
    may_start.clear()
    assert answers(server.url), "a server that runs is left alone"
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.url is None)
    time.sleep(2.0)
    assert server.url is None and server.num_starts == 1
    may_start.set()
    wait_for(lambda: server.num_starts == 2)


def test_a_server_that_hangs_can_be_restarted(start):
    server = start()
    wait_for(lambda: server.url)
    os.kill(server.pid, signal.SIGSTOP)
    server.restart()
    assert server.url is None
    wait_for(lambda: server.num_starts == 2)


def test_a_server_that_keeps_dying_is_given_up_with_the_end_of_its_log(start):
    server = start("dies", max_restarts=1)
    wait_for(lambda: not server._thread.is_alive())
    with pytest.raises(ServerFailedError, match=r"(?s)ended 2 times.*max_restarts.*out of memory, say"):
        server.raise_if_failed()


def test_long_uptime_clears_earlier_failures(start, monkeypatch):
    monkeypatch.setattr(sglang_server, "STABLE_AFTER_S", 0.0)
    server = start(max_restarts=1)
    for num_starts in (1, 2):
        wait_for(lambda expected=num_starts: server.url and server.num_starts == expected)
        os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.num_starts == 3)


def test_a_server_that_never_answers_is_a_failure(start):
    server = start("never-ready", max_restarts=0, startup_timeout_s=1)
    wait_for(lambda: not server._thread.is_alive())
    with pytest.raises(ServerFailedError, match="ended 1 times"):
        server.raise_if_failed()


def test_free_ports_differ_from_those_in_use(start):
    server = start()
    url = wait_for(lambda: server.url)
    assert not url.endswith(f":{free_port()}")


TRAINER = """
import sys, time
from pathlib import Path
from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.server import SupervisedServer
python, model, log = map(Path, sys.argv[1:])
server = SupervisedServer(LaunchPlan(model, "cpu", "fp32", 0, SGLangConfig(python=python)), 0, log)
while server.pid is None:
    time.sleep(0.1)
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_real_server_leaves_no_orphan_when_the_trainer_is_killed(live_models, tmp_path):
    command = [sys.executable, *FORKED, "-c", TRAINER, engine_python(), live_models[0].path, tmp_path / "log"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, env=environment) as trainer:
        try:
            assert trainer.stdout is not None
            server = psutil.Process(int(trainer.stdout.readline()))
            # Scheduler and detokenizer. While they load, nothing in them could answer a signal yet.
            wait_for(lambda: len(server.children()) >= 2)
            family = [*server.parents()[:1], server, *server.children(recursive=True)]
        finally:
            trainer.kill()
    # Orphans are reaped by whoever runs this container, if at all: a zombie is as good as gone.
    wait_for(lambda: all(not process.is_running() or process.status() == ZOMBIE for process in family), 30)
