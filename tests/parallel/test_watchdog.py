"""A rank that keeps the others waiting is named, and the job ends instead of hanging."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from toy_runs import Started, Toy, is_logged

from megatron_prime.parallel.watchdog import Report, diagnose

RANK = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from megatron_prime.observability.heartbeat import beat, begin_step, phase
from megatron_prime.parallel.watchdog import start_watchdog

def oversleep():
    time.sleep(300)

case, culprit, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo", timeout=timedelta(seconds=100))
rank = dist.get_rank()
start_watchdog(rank, dist.get_world_size(), 5.0, folder)
for step in range(1, 4):
    begin_step(step)
    with phase("policy"):
        beat("microbatch")
        if rank == culprit and step == 3:
            if case == "sleeps":
                oversleep()
            if case == "is stopped":
                time.sleep(1.5)  # until it has told where it is
                os.kill(os.getpid(), signal.SIGSTOP)
            if case == "takes another way":
                dist.barrier()
        dist.all_reduce(torch.ones(1))
"""


def run_ranks(case: str, culprit: int, folder, port: int) -> list[str]:
    """Two ranks; what each wrote to stderr. The ones that wait must end by themselves, with exit code 1."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, case, str(culprit), str(folder)],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        waiting = [
            rank for index, rank in enumerate(ranks) if case == "takes another way" or index != culprit
        ]
        codes = [rank.wait(90) for rank in waiting]
    finally:
        for rank in ranks:
            rank.kill()
    told = [rank.communicate()[1] for rank in ranks]
    assert codes == [1] * len(codes), told
    return told


@pytest.fixture
def port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("case", "why"),
    [("sleeps", "is not in a collective but in oversleep"), ("is stopped", "does not answer")],
)
def test_a_rank_that_did_not_arrive_is_named_with_phase_step_and_last_event(case, why, tmp_path, port):
    told = run_ranks(case, 1, tmp_path, port)[0]
    assert "stuck: rank 1 did not arrive" in told
    assert f"rank 1 {why}" in told
    rows = [
        line.split(": ", 1)[1].split()
        for line in told.splitlines()
        if "policy" in line and " microbatch " in line
    ]
    assert [row[:4] for row in rows[-2:]] == [[str(rank), "3", "policy", "microbatch"] for rank in range(2)]
    assert "waits in all_reduce" in told
    (path,) = tmp_path.glob("stuck_step_00000003.json")
    report = json.loads(path.read_text())
    assert list(report["missing"]) == ["1"]
    assert [rank["step"] for rank in report["reports"]] == [3, 3]


def test_a_stopped_rank_0_which_holds_the_store_is_named_too(tmp_path, port):
    told = run_ranks("is stopped", 0, tmp_path, port)[1]
    assert f"the job's store at 127.0.0.1:{port} does not answer: rank 0" in told
    assert "waits in all_reduce" in told


def report(rank: int, **changes) -> Report:
    usual = Report(rank, 2, "policy", "microbatch", 40, 9.0, True, "all_reduce", "node", 7)
    return replace(usual, **changes)


def test_without_a_silent_or_busy_rank_the_one_behind_is_named():
    found = diagnose([report(0), report(1, count=38, phase="prm"), report(2)], {})
    assert list(found.missing) == [1]
    assert "is behind: phase prm, step 2" in found.missing[1]


def test_ranks_in_different_collectives_are_told_apart():
    found = diagnose([report(0), report(1), report(2, doing="barrier (b.py:3)")], {})
    assert found.missing == {2: "waits elsewhere than the others: barrier (b.py:3)"}


def test_when_nothing_tells_the_ranks_apart_the_network_is_suspected():
    found = diagnose([report(0), report(1)], {})
    assert found.missing == {}
    assert "the network" in found.lines()[0]


def test_silent_and_busy_ranks_are_all_named():
    found = diagnose([report(0), report(1), report(2, is_waiting=False, doing="sleep (c.py:1)")], {1: 30.0})
    assert list(found.missing) == [1, 2]
    lines = found.lines()
    assert lines[0] == "stuck: ranks 1, 2 did not arrive"
    assert "silent for 30 s" in lines[-2] and "is in sleep (c.py:1)" in lines[-1]


def test_a_stopped_rank_ends_a_training_run_and_is_named(toy: Toy, tmp_path):
    run_dir = tmp_path / "run"
    arguments = [
        "train",
        "run.toml",
        f"run_dir={run_dir}",
        "parallel.num_processes=2",
        "platform.timeout_s=20",
    ]
    with Started(toy.folder, *arguments, "trainer.num_steps=1000", "data.evaluation=[]") as started:
        started.wait_until(lambda: is_logged(run_dir, 1))
        started.ranks()[1].suspend()
        started.process.wait(120)
        assert started.process.returncode == 1
        assert started.all_gone()
        assert "stuck: rank 1 did not arrive" in started.output()
    (path,) = (run_dir / "reports").iterdir()
    reports = json.loads(path.read_text())["reports"]
    assert reports[0]["phase"] in ("rollout", "logprobs", "prm", "policy", "weight_sync", "step", "start")
    assert reports[0]["step"] >= 1
