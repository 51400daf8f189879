"""The example script requeues or fails a job according to the exit codes of its ranks, on a real Slurm cluster.

The ranks are a shell script that ends as each case requires, within seconds. `kill-on-bad-exit` ends the other ranks,
and srun reports the highest code, which is that of the killed ones; the code of the first rank to end must count.
"""

import sys

import pytest

from tests.slurm.slurm_jobs import SCRIPT, SIZE
from tests.slurm.slurm_lab import until
from tests.support.toy_runs import ROOT

PROGRAM = """#!/bin/bash
[[ $1 == tools/* ]] && exec {python} "$@"
echo "rank $RANK begins"
{ending}
sleep 60
"""
REQUEUED, FAILED, COMPLETED = "PENDING", "FAILED", "COMPLETED"


@pytest.mark.parametrize(
    ("ending", "state", "code"),
    [
        pytest.param("exit 0", COMPLETED, 0, id="done"),
        pytest.param("sleep $RANK; exit 75", REQUEUED, 75, id="asked to stop, one rank after the other"),
        pytest.param("((RANK == 3)) && exit 1", FAILED, 1, id="an error of one rank"),
        pytest.param("((RANK == 3)) && kill -KILL $$", REQUEUED, 137, id="a killed rank"),
        pytest.param("exit 69", REQUEUED, 69, id="all other ranks lost one"),
        pytest.param(
            "((RANK)) && exit 69; sleep 1; exit 1", FAILED, 1, id="ranks lost one that had an error"
        ),
    ],
)
def test_the_exit_code_of_the_first_rank_to_end_decides(slurm, tmp_path, ending, state, code):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    program = tmp_path / "program.sh"
    program.write_text(PROGRAM.format(python=sys.executable, ending=ending))
    program.chmod(0o755)
    job = slurm.submit(
        *(*SIZE, "--time=60"),
        *(f"--export=ALL,PYTHON={program}", str(SCRIPT), "no.toml"),
        folder=tmp_path,
    )
    log = tmp_path / f"prime-{job}.log"
    assert until(lambda: log.exists() and "ended with exit code" in log.read_text(), 60.0)
    found = slurm.wait(job, state, timeout_s=30.0)
    slurm.cancel(job)
    text = log.read_text()
    assert f"ended with exit code {code}:" in text
    assert ("queued again" in text) == (state == REQUEUED)
    assert int(found["Restarts"]) == (state == REQUEUED)
