"""A run_dir takes one job; a kill leaves no lock behind."""

import signal
import subprocess
import sys

import pytest

from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.training.run_lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from megatron_prime.training.run_lock import _lock
file = _lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def topology():
    platform = select_platform("cpu")
    platform.start_process_group()
    return build_topology(platform)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_job_is_refused_and_told_of_the_first(tmp_path, topology, holder):
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on .*choose another run_dir"):
        RunLock(tmp_path, topology)


def test_a_kill_leaves_no_lock_behind(tmp_path, topology, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunLock(tmp_path, topology).close()


def test_closing_lets_the_next_one_in(tmp_path, topology):
    for _ in range(2):
        RunLock(tmp_path / "new" / "run", topology).close()


def test_a_run_dir_that_cannot_be_made_is_an_error(tmp_path, topology):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RunLock(tmp_path / "file" / "run", topology)
