"""Only one job may use a run_dir; a killed job leaves no lock."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest

from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.training.checkpoint.run_lock import FencedError, Lease, RunLock
from megatron_prime.training.checkpoint.store import CheckpointStore, RunState
from tests.support import deadlines
from tests.support.forked_commands import FORKED

HOLDER = """
import sys, time
from pathlib import Path
from megatron_prime.training.checkpoint.run_lock import acquire
held = acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


ORPHAN = """
import sys
from pathlib import Path
from megatron_prime.observability import MetricsLogger
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.training.checkpoint.store import CheckpointStore, RunState
from megatron_prime.training.checkpoint.run_lock import FencedError, RunLock
platform = select_platform("cpu")
platform.start_process_group()
topology = build_topology(platform)
run_dir = Path(sys.argv[1])
lock = RunLock(run_dir, topology)
logger = MetricsLogger(run_dir)
store = CheckpointStore(
    run_dir / "checkpoints", topology, attempt=lock.attempt, fence=lock.fence
)
with lock.fence():
    logger.log(0, {"a/b": 0.0})
store.save({}, RunState(1, {}, 0))
print("saved", flush=True)
sys.stdin.readline()
def log():
    with lock.fence():
        logger.log(1, {"a/b": 1.0})
for act in (log, lambda: store.save({}, RunState(2, {}, 0))):
    try:
        act()
        print("wrote", flush=True)
    except FencedError as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def topology():
    platform = select_platform("cpu")
    platform.start_process_group()
    return build_topology(platform)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, *FORKED, "-W", "ignore", "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_job_is_refused_with_the_name_of_the_first(tmp_path, topology, holder):
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on .*choose another run_dir"):
        RunLock(tmp_path, topology)


def test_a_requeued_job_takes_over_and_its_orphan_cannot_write(tmp_path, topology, monkeypatch):
    """Slurm has requeued the job while rank 0 of the previous attempt still runs and holds the lock."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    orphan = subprocess.Popen(
        [sys.executable, *FORKED, "-W", "ignore", "-c", ORPHAN, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert orphan.stdin is not None and orphan.stdout is not None
    assert orphan.stdout.readline() == "saved\n"
    with pytest.raises(ValueError, match=f"in use by process {orphan.pid}"):
        RunLock(tmp_path, topology)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lock = RunLock(tmp_path, topology)
    assert lock.attempt == 2
    before = sorted(tmp_path.rglob("*"))
    output, _ = orphan.communicate("go on\n", timeout=deadlines.seconds(60))
    orphan.wait()
    for line in output.splitlines():
        assert (
            "this is attempt 1 of the run" in line
            and f"process {os.getpid()}" in line
            and "(attempt 2) has it" in line
        )
    assert len(output.splitlines()) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    store = CheckpointStore(tmp_path / "checkpoints", topology, attempt=lock.attempt, fence=lock.fence)
    assert store.newest_sound().name == "step_00000001"
    assert store.save({}, RunState(2, {}, 0)).name == "step_00000002"
    lock.close()


def test_an_earlier_attempt_that_starts_late_is_refused(tmp_path, topology, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    RunLock(tmp_path, topology).close()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match=r"a later attempt \(restart 2\) of this same job 7"):
        RunLock(tmp_path, topology)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    RunLock(tmp_path, topology).close()


def test_a_third_job_is_refused_by_the_attempt_that_took_over(tmp_path, topology, monkeypatch, holder):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    lease = Lease.read(tmp_path)
    (tmp_path / "lease.json").write_text(json.dumps(asdict(lease) | {"job": "7"}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    second = RunLock(tmp_path, topology)
    monkeypatch.delenv("SLURM_JOB_ID")
    holder.kill()
    holder.wait()
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        RunLock(tmp_path, topology)
    second.close()
    RunLock(tmp_path, topology).close()


def test_nobody_can_write_without_the_lease(tmp_path, topology):
    lock = RunLock(tmp_path, topology)
    with lock.fence():
        pass
    (tmp_path / "lease.json").unlink()
    with pytest.raises(FencedError, match="no lease any more"), lock.fence():
        raise AssertionError("the block must not begin")
    lock.close()


def test_a_kill_leaves_no_lock_behind(tmp_path, topology, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunLock(tmp_path, topology).close()


def test_closing_releases_the_lock(tmp_path, topology):
    for _ in range(2):
        RunLock(tmp_path / "new" / "run", topology).close()


def test_a_run_dir_that_cannot_be_created_is_an_error(tmp_path, topology):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RunLock(tmp_path / "file" / "run", topology)
