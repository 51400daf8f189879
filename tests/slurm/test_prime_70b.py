"""examples/prime_70b.sh on a real Slurm cluster of two nodes, with and without stops and failures.

Tests marked `minutes` take minutes each: MEGATRON_PRIME_SLURM=all runs them.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from megatron_prime.engines.sglang.launch import LOADER
from tests.slurm.slurm_lab import NODES, until
from tests.support.sglang_live import engine_python


def test_a_job_that_is_asked_to_stop_saves_is_requeued_and_resumes_exactly(jobs, unbroken):
    assert "ended with exit code 0: the run is finished\nsteps finished: 5 of 5" in unbroken
    assert (jobs.folder / "slurm_unbroken" / "provenance" / "attempt_0001.json").is_file()
    job = jobs.submit("slurm_stopped")
    jobs.until_step(job, 0, 1)
    # Slurm sends the same signal before the time limit (--signal=B:USR1@900).
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=jobs.lab.environment, check=True)
    log = jobs.finish(job)
    assert "ended with exit code 75: the run was asked to stop, and saved" in log
    assert log.count("queued again") == 1 and log.count("start 1 of") == 1
    jobs.assert_as_unbroken("slurm_stopped")
    for start in (0, 1):
        assert sorted(p.name for p in jobs.logs(job, start).glob("rank-*")) == [
            f"rank-{r}.log" for r in range(4)
        ]


@pytest.mark.minutes
def test_a_run_out_of_memory_is_requeued_with_the_reason(jobs, unbroken):
    job = jobs.submit("slurm_hungry", **{"advantage.estimator": "tests.support.hungry_estimator:OnHost"})
    log = jobs.finish(job)
    assert log.count("ended with exit code 71: out of memory") == log.count("queued again") == 1
    assert "rank N: out of host memory" in log and "steps finished: 5 of 5" in log
    folder = jobs.folder / "slurm_hungry" / "provenance"
    ends = [json.loads(path.read_text())["last_end"] for path in sorted(folder.glob("attempt_*.json"))]
    assert ends[0] == [] and ends[1][0] == "ended with exit code 71: out of memory"


@pytest.mark.minutes
def test_a_killed_rank_loses_the_steps_since_the_last_checkpoint(jobs, unbroken):
    job = jobs.submit("slurm_rank")
    jobs.until_step(job, 0, 3)
    os.kill(jobs.pid_of_rank(3), signal.SIGKILL)
    log = jobs.finish(job)
    assert "a rank or a node was lost" in log and log.count("queued again") == 1
    jobs.assert_as_unbroken("slurm_rank")


@pytest.mark.minutes
def test_a_job_with_a_killed_node_is_requeued(jobs, unbroken):
    job = jobs.submit("slurm_node")
    jobs.until_step(job, 0, 3)
    for pid in (jobs.lab.pid_of(f"slurmd.{NODES[1]}"), *jobs.lab.pids_in(NODES[1])):
        if pid is not None and Path("/proc", str(pid)).exists():
            os.kill(pid, signal.SIGKILL)
    assert until(lambda: jobs.lab.job(job)["Restarts"] == "1", 120.0)
    jobs.lab.start_node(NODES[1])
    jobs.finish(job)
    jobs.assert_as_unbroken("slurm_node")


@pytest.mark.minutes
def test_a_hanging_rank_is_reported_by_the_others_and_the_job_is_requeued(jobs, unbroken):
    """Slurm sees four live processes, so the ranks that wait for the hanging one must end the job."""
    job = jobs.submit("slurm_hangs", **{"platform.timeout_s": "30"})
    jobs.until_step(job, 0, 3)
    os.kill(jobs.pid_of_rank(3), signal.SIGSTOP)
    log = jobs.finish(job)
    assert "ended with exit code 69: a rank or its node was lost" in log and log.count("queued again") == 1
    assert "stuck: rank 3 did not arrive" in "".join(
        path.read_text() for path in jobs.logs(job, 0).glob("rank-*")
    )
    jobs.assert_as_unbroken("slurm_hangs")


@pytest.mark.minutes
def test_after_a_network_failure_only_one_attempt_writes(jobs, unbroken):
    job = jobs.submit("slurm_cut", **{"checkpoint.save_every": "1"})
    jobs.until_step(job, 0, 2)
    orphan = jobs.pid_of_rank(0)
    jobs.lab.cut(NODES[0], True)
    assert until(lambda: jobs.lab.job(job)["Restarts"] == "1", 120.0)
    assert Path("/proc", str(orphan)).exists(), "rank 0 still runs where Slurm cannot reach it"
    jobs.lab.cut(NODES[0], False)
    jobs.finish(job)
    lease = json.loads((jobs.folder / "slurm_cut" / "lease.json").read_text())
    assert (lease["attempt"], lease["restart_count"]) == (2, 1)
    assert jobs.history("slurm_cut") == jobs.history("slurm_unbroken")


@pytest.mark.minutes
def test_servers_run_on_both_nodes_and_one_that_dies_is_restarted(jobs):
    changes = {
        "rollout.engine": "sglang",
        "rollout.sglang.nodes": "all",
        "rollout.sglang.python": str(engine_python()),
        "rollout.sglang.weight_full_check_every": "1",
    }
    job = jobs.submit("slurm_servers", **changes)
    jobs.until_step(job, 0, 1)
    killed = [pid for pid in jobs.lab.pids_in(NODES[1]) if is_server(pid)]
    assert killed, "the second node has a server of its own"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    log = jobs.finish(job)
    assert "steps finished: 5 of 5" in log
    assert "SGLang server 1 ended; restart 1" in (jobs.logs(job, 0) / "rank-2.log").read_text()


@pytest.mark.minutes
def test_a_server_on_a_node_of_its_own_dies_while_the_others_train_and_is_back_at_the_next_push(jobs):
    """The first node trains with two ranks; the second has two servers, which sample the next batch meanwhile.

    Then the job is asked to stop, and goes on with servers of another key.
    """
    changes = {
        "rollout.engine": "sglang",
        "rollout.max_staleness": "1",
        "rollout.sglang.num_servers": "2",
        "rollout.sglang.python": str(engine_python()),
        "rollout.sglang.weight_full_check_every": "1",
    }
    job = jobs.submit("slurm_overlap", ("--export=ALL,SERVER_NODES=1",), **changes)
    jobs.until_step(job, 0, 1)
    killed, *others = [pid for pid in jobs.lab.pids_in(NODES[1]) if is_server(pid)]
    assert len(others) == 1
    os.kill(killed, signal.SIGKILL)
    jobs.until_step(job, 0, 2)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=jobs.lab.environment, check=True)
    log = jobs.finish(job)
    assert log.count("(2 ranks)") == 2 and log.count("queued again") == 1 and "steps finished: 5 of 5" in log
    keys = {(jobs.logs(job, start) / "server.key").read_text() for start in (0, 1)}
    assert len(keys) == 2 and all(len(key) == 64 for key in keys)
    assert sorted(path.name for path in jobs.logs(job, 0).glob("*-*.log")) == [
        *("rank-0.log", "rank-1.log"),
        "servers-0.log",
    ]
    assert "ended; restart 1 of at most 3" in (jobs.logs(job, 0) / "servers-0.log").read_text()
    staleness = [
        record["rollout/staleness_mean"] for record in jobs.history("slurm_overlap") if record["step"] > 0
    ]
    assert staleness == [0, 1, 1, 1, 1]
    assert not any(is_server(pid) for pid in jobs.lab.pids_in(NODES[1]))


def is_server(pid: int) -> bool:
    """Return whether a process is the main process of an SGLang server."""
    words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    return f"{LOADER.partition('.')[0]}.serve".encode() in words and not any(
        b"engines/sglang/child" in word for word in words
    )
