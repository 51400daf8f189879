"""Tests that a rank that keeps the others waiting is named, and that the job ends instead of hanging."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_prime.parallel.peer_loss import EXIT_CODE
from megatron_prime.parallel.watchdog import Report, diagnose
from megatron_prime.workers.ports import free_port
from tests.support.forked_commands import FORKED
from tests.support.toy_runs import Started, Toy, is_logged

RANK = """
import os, signal, sys, threading, time
from datetime import timedelta
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
from megatron_prime.observability.heartbeat import beat, begin_step, phase
from megatron_prime.parallel.watchdog import start_watchdog

def oversleep():
    time.sleep(300)

class Tensor:
    __float__ = partial(time.sleep, 300)  # blocks in C, as if a GPU did not finish its work

case, culprit, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo", timeout=timedelta(seconds=100))
rank = dist.get_rank()
start_watchdog(rank, dist.get_world_size(), 5.0, folder, is_cuda="GPU" in case)
for step in range(1, 4):
    begin_step(step)
    with phase("policy"):
        beat("microbatch")
        if rank == culprit and step == 3:
            if case == "sleeps":
                oversleep()
            if case == "waits for a thread beside its GPU":
                threading.Event().wait(300)
            if case == "reads its GPU":
                float(Tensor())
            if case == "is stopped":
                time.sleep(1.5)  # until it has reported its activity
                os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.ones(1))
"""


CASES = (
    *(("sleeps", 1), ("is stopped", 1), ("is stopped", 0)),
    *(("reads its GPU", 1), ("waits for a thread beside its GPU", 1)),
)


class Job:
    """A job of two ranks, one of which does not arrive in step 3."""

    def __init__(self, case: str, culprit: int, folder: Path) -> None:
        self.folder, self.culprit = folder, culprit
        self.port = free_port()
        address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        self._ranks = [
            subprocess.Popen(
                [sys.executable, *FORKED, "-W", "ignore", "-c", RANK, case, str(culprit), str(folder)],
                env=os.environ
                | address
                | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def finish(self) -> None:
        """Wait until the waiting rank exits by itself, then kill the culprit."""
        try:
            self.code = self._ranks[1 - self.culprit].wait(90)
        finally:
            for rank in self._ranks:
                rank.kill()
        self.told = self._ranks[1 - self.culprit].communicate()[1]
        self._ranks[self.culprit].communicate()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Return all jobs, started together because they wait most of the time."""
    started = {case: Job(*case, tmp_path_factory.mktemp("stuck")) for case in CASES}
    for job in started.values():
        job.finish()
    return started


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("sleeps", "is not in a collective but in oversleep"),
        ("waits for a thread beside its GPU", "is not in a collective but in wait ("),
        ("is stopped", "does not answer"),
    ],
)
def test_a_rank_that_did_not_arrive_is_named_with_phase_step_and_last_event(case, why, jobs):
    job = jobs[case, 1]
    assert job.code == EXIT_CODE, job.told
    assert "stuck: rank 1 did not arrive" in job.told
    assert f"rank 1 {why}" in job.told
    lines = [
        line.split(": ", 1)[1]
        for line in job.told.splitlines()
        if " microbatch " in line and "policy " in line
    ]
    assert [line.split()[:4] for line in lines[-2:]] == [
        [str(rank), "3", "policy", "microbatch"] for rank in range(2)
    ]
    assert "waits in all_reduce" in job.told
    (path,) = job.folder.glob("stuck_step_00000003.json")
    written = json.loads(path.read_text())
    assert list(written["missing"]) == ["1"]
    assert [rank["step"] for rank in written["reports"]] == [3, 3]


def test_a_rank_that_waits_for_its_gpu_is_not_missing(jobs):
    job = jobs["reads its GPU", 1]
    assert job.code == EXIT_CODE, job.told
    assert "stuck: no rank is known to be missing" in job.told and "did not arrive" not in job.told
    assert "waits in all_reduce" in job.told and "waits in <module> (<string>:" in job.told


def test_a_stopped_rank_0_which_holds_the_store_is_named_too(jobs):
    job = jobs["is stopped", 0]
    assert job.code == EXIT_CODE, job.told
    assert f"the job's store at 127.0.0.1:{job.port} does not answer: rank 0" in job.told
    assert "waits in all_reduce" in job.told


def report(rank: int, **changes) -> Report:
    usual = Report(rank, 2, "policy", "microbatch", 40, 9.0, True, "all_reduce", "node", 7)
    return replace(usual, **changes)


def test_without_a_silent_or_busy_rank_the_one_behind_is_named():
    found = diagnose([report(0), report(1, count=38, phase="prm"), report(2)], {})
    assert list(found.missing) == [1]
    assert "is behind: phase prm, step 2" in found.missing[1]


def test_the_smallest_group_in_a_different_collective_is_named():
    found = diagnose([report(0), report(1), report(2, doing="barrier (b.py:3)")], {})
    assert found.missing == {2: "waits elsewhere than the others: barrier (b.py:3)"}


def test_the_network_is_suspected_when_all_reports_look_alike():
    found = diagnose([report(0), report(1)], {})
    assert found.missing == {}
    assert "the network" in found.lines()[0]


@pytest.mark.parametrize(
    ("changes", "missing", "hints"),
    [
        pytest.param({"doing": "train (losses.py:3)"}, [], [], id="reads a tensor, in another line"),
        pytest.param({"doing": "train (losses.py:3)", "count": 39}, [], [1], id="queued less work"),
        pytest.param({"is_waiting": False, "doing": "sleep (a.py:1)"}, [1], [], id="works on the host"),
        pytest.param({}, [], [], id="in the same place"),
    ],
)
def test_live_ranks_that_wait_for_gpus_are_not_missing(changes, missing, hints):
    reports = [replace(report(rank), uses_gpu=True) for rank in range(3)]
    found = diagnose([reports[0], replace(reports[1], **changes), reports[2]], {})
    assert ([*found.missing], [*found.hints]) == (missing, hints)
    lines = found.lines()
    assert lines[0].startswith("stuck: rank 1 did not arrive" if missing else "stuck: no rank is known to be")
    assert any(line.startswith("  rank 1 ") for line in lines) == bool(missing or hints)


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
        "platform.timeout_s=12",
    ]
    with Started(toy.folder, *arguments, "trainer.num_steps=1000", "data.evaluation=[]") as started:
        started.wait_until(lambda: is_logged(run_dir, 1))
        started.ranks()[1].suspend()
        started.process.wait(120)
        assert started.process.returncode == 69, "a peer is missing: start again"
        assert started.all_gone()
        assert "stuck: rank 1 did not arrive" in started.output()
    (path,) = (run_dir / "reports").iterdir()
    reports = json.loads(path.read_text())["reports"]
    assert reports[0]["phase"] in ("rollout", "logprobs", "prm", "policy", "weight_sync", "step", "start")
    assert reports[0]["step"] >= 1
