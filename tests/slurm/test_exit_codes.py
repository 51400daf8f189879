"""What the example script makes of its ranks' exit codes, on a real Slurm: queue the job again, or give it up.

Ranks here are a shell script that ends as a test says, so that each case takes seconds. `kill-on-bad-exit` ends the
others, and srun reports the highest code of all, which is that of the ended ones: the first rank's own code must count.
"""

import sys

import pytest

from tests.slurm.slurm_jobs import SCRIPT
from tests.slurm.slurm_lab import until
from tests.support.toy_runs import ROOT

PROGRAM = """#!/bin/bash
[[ $1 == tools/* ]] && exec {python} "$@"
echo "rank $RANK begins"
{ending}
sleep 60
"""
AGAIN, GIVEN_UP, DONE = "PENDING", "FAILED", "COMPLETED"


@pytest.mark.parametrize(
    ("ending", "state", "code"),
    [
        pytest.param("exit 0", DONE, 0, id="done"),
        pytest.param("sleep $RANK; exit 75", AGAIN, 75, id="asked to stop, one after the other"),
        pytest.param("((RANK == 3)) && exit 1", GIVEN_UP, 1, id="a fault of one rank"),
        pytest.param("((RANK == 3)) && kill -KILL $$", AGAIN, 137, id="a killed rank"),
        pytest.param("exit 69", AGAIN, 69, id="all that are left miss another"),
        pytest.param(
            "((RANK)) && exit 69; sleep 1; exit 1", GIVEN_UP, 1, id="ranks miss one that has a fault"
        ),
    ],
)
def test_the_first_rank_that_ends_decides(slurm, tmp_path, ending, state, code):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    program = tmp_path / "program.sh"
    program.write_text(PROGRAM.format(python=sys.executable, ending=ending))
    program.chmod(0o755)
    job = slurm.submit(
        *("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=60"),
        *(f"--export=ALL,PYTHON={program}", str(SCRIPT), "no.toml"),
        folder=tmp_path,
    )
    log = tmp_path / f"prime-{job}.log"
    assert until(lambda: log.exists() and "ended with exit code" in log.read_text(), 60.0)
    found = slurm.wait(job, state, timeout_s=30.0)
    slurm.cancel(job)
    told = log.read_text()
    assert f"ended with exit code {code}:" in told
    assert ("queued again" in told) == (state == AGAIN)
    assert int(found["Restarts"]) == (state == AGAIN)
