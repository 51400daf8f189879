"""Ranks of the example script have all the cores, memory and GPUs of their node, whatever sbatch was asked for.

The lab's Slurm binds tasks to cores, and by cgroups forbids cores, memory and device files that a step did not request.
"""

import os
import sys

import pytest

from tests.slurm.slurm_jobs import SCRIPT, SIZE
from tests.slurm.slurm_lab import CORES, GPUS, NODES, confines
from tests.support.toy_runs import ROOT

needs_cgroups = pytest.mark.skipif(not confines(), reason="Slurm needs version 1 of cgroups to confine ranks")
PROGRAM = """#!/bin/bash
[[ $1 == tools/* ]] && exec {python} "$@"
echo "place $RANK $LOCAL_RANK $LOCAL_WORLD_SIZE $SLURMD_NODENAME"
echo "cores $(env -u OMP_NUM_THREADS nproc)"
# What a server would get, which is a child in a session of its own.
echo "cores of a child $(setsid --wait env -u OMP_NUM_THREADS nproc)"
group=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
echo "MiB $(awk '/hierarchical_memory_limit/ {{ printf "%d", $2 / 1048576 }}' /sys/fs/cgroup/memory$group/memory.stat)"
echo "visible ${{CUDA_VISIBLE_DEVICES-}}"
for gpu in {gpus}; do
    opened=$({{ : < "$gpu"; }} 2>&1)
    [[ $opened == *permitted* ]] || echo "may open $gpu"
done
"""


def ranks_of(slurm, folder, *options: str) -> list[dict[str, list[str]]]:
    """Run the script with options of sbatch, and return what each rank has found: name -> values."""
    (folder / "tools").symlink_to(ROOT / "tools")
    program = folder / "program.sh"
    gpus = " ".join(str(path) for path in slurm.gpu_files)
    program.write_text(PROGRAM.format(python=sys.executable, gpus=gpus))
    program.chmod(0o755)
    arguments = (*SIZE, "--time=60", *options, f"--export=ALL,PYTHON={program}", str(SCRIPT), "no.toml")
    job = slurm.submit(*arguments, folder=folder)
    slurm.wait(job, "COMPLETED", "FAILED", timeout_s=60.0)
    found = []
    for rank in range(4 if "--ntasks-per-node=1" not in options else 2):
        lines = (folder / "logs" / f"prime-{job}" / "0" / f"rank-{rank}.log").read_text().splitlines()
        facts: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.rpartition(" ") if not line.startswith("place") else line.partition(" ")
            facts.setdefault(name, []).append(value)
        found.append(facts)
    return found


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="as the script asks"),
        pytest.param(("--gpus-per-task=1", "--gpus-per-node=2"), id="a GPU per task"),
        pytest.param(("--gpu-bind=single:1",), id="bound to one GPU"),
        pytest.param(("--gpus-per-node=0", "--gres=gpu:4"), id="gres"),
        pytest.param(("--gpus-per-node=2", "--gpus=4"), id="GPUs of the job"),
        pytest.param(("--distribution=cyclic",), id="ranks dealt out to nodes"),
        pytest.param(("--hint=nomultithread",), id="bound to cores"),
    ],
)
def test_every_rank_has_the_whole_node(slurm, tmp_path, options):
    ranks = ranks_of(slurm, tmp_path, *options)
    places = [f"{rank} {rank % 2} 2 {NODES[rank // 2]}" for rank in range(4)]
    assert [rank["place"] for rank in ranks] == [[place] for place in places]
    for rank in ranks:
        assert rank["cores"] == rank["cores of a child"] == [str(CORES)]
        assert rank["visible"] == [",".join(map(str, range(GPUS)))]
        if confines():
            assert len(rank["may open"]) == GPUS
            (mib,) = map(int, rank["MiB"])
            assert mib > 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_rank_alone_on_its_node_has_all_cores(slurm, tmp_path):
    """The job has more cores than its ranks have asked for, because it has whole nodes."""
    for rank in ranks_of(slurm, tmp_path, "--ntasks-per-node=1"):
        assert rank["cores"] == [str(CORES)]


@needs_cgroups
def test_a_request_for_less_memory_is_kept(slurm, tmp_path):
    """The memory of the job reaches the ranks, so that the test above can fail."""
    assert {rank["MiB"][0] for rank in ranks_of(slurm, tmp_path, "--mem=300")} == {"300"}
