import os
import subprocess
import sys

import pytest

from megatron_prime.rewards.code.cgroup import ControlGroup, parent_group, remove_stale_groups
from tests.support import deadlines

MAKES_GROUPS = all(parent_group(controller) is not None for controller in ("memory", "pids"))
needs_groups = pytest.mark.skipif(not MAKES_GROUPS, reason="this user may not make cgroups here")

HOG = """
import os, time
for _ in range(3): os.fork()
x = bytearray(40 << 20)
print('through', flush=True)
time.sleep(1)
"""


@needs_groups
def test_memory_is_limited_over_all_processes():
    with ControlGroup(100 << 20, 64) as group:
        process = subprocess.run(
            [sys.executable, "-c", HOG],
            preexec_fn=group.enter,
            capture_output=True,
            timeout=deadlines.seconds(60),
            check=False,
        )
    assert process.stdout.count(b"through") < 8
    with ControlGroup(4 << 30, 64) as group:
        process = subprocess.run(
            [sys.executable, "-c", HOG],
            preexec_fn=group.enter,
            capture_output=True,
            timeout=deadlines.seconds(60),
            check=False,
        )
    assert process.stdout.count(b"through") == 8


@needs_groups
def test_removing_a_group_kills_its_processes():
    with ControlGroup(1 << 30, 64) as group:
        folders = list(group.folders)
        assert len(folders) == 2
        child = subprocess.Popen(["sleep", "1000"], preexec_fn=group.enter)
        assert str(child.pid) in (folders[0] / "cgroup.procs").read_text().split()
    assert child.wait(timeout=deadlines.seconds(10)) == -9
    assert not any(folder.exists() for folder in folders)
    assert group.folders == []


@needs_groups
def test_only_stale_groups_are_removed():
    killed = subprocess.Popen(["sleep", "1000"])
    left = [parent_group(name) / f"megatron_prime_{killed.pid}_{name}" for name in ("memory", "pids")]
    for folder in left:
        folder.mkdir()
    with ControlGroup(1 << 30, 64) as group:
        remove_stale_groups()
        assert all(folder.exists() for folder in [*left, *group.folders])
        killed.kill()
        killed.wait()
        remove_stale_groups()
        assert not any(folder.exists() for folder in left)
        assert all(folder.exists() for folder in group.folders)


def test_without_permission_no_group_is_created(tmp_path):
    with ControlGroup(1 << 30, 64, root=tmp_path / "none") as group:
        assert group.folders == []
        group.enter()


def test_groups_of_cgroup_version_2_are_limited(tmp_path):
    """Check the limits in a fake cgroup folder; a folder without a controller's files is left unchanged."""
    (tmp_path / "cgroup.controllers").write_text("")
    with ControlGroup(1 << 30, 64, root=tmp_path) as group:
        assert group.folders == []
    assert os.listdir(tmp_path) == ["cgroup.controllers"]
