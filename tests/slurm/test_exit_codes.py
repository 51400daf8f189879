"""The example script requeues or fails a job according to the exit codes of its ranks, on a real Slurm cluster.

The ranks are a shell script that ends as each case requires, within seconds. `kill-on-bad-exit` ends the other ranks,
and srun reports the highest code, which is that of the killed ones; the code of the first rank to end must count.
"""

import sys

import pytest

from tests.slurm.slurm_jobs import SCRIPT, SIZE
from tests.slurm.slurm_lab import confines, until
from tests.support.toy_runs import ROOT

PROGRAM = """#!/bin/bash
[[ $1 == tools/* ]] && exec {python} "$@"
echo "rank $RANK begins"
{ending}
sleep 60
"""
HOG = "((RANK == 3)) && exec python3 -c 'bytearray(1 << 30)'"
"""Needs more memory than the job has."""
HOG_ALONE = "((RANK == 3)) && { python3 -c 'bytearray(1 << 30)'; kill -KILL $PPID $$; }"
"""Ends like a node whose processes the kernel kills together: no rank records a code."""
ENDS_BY_START = """codes=(CODES); code=${codes[${SLURM_RESTART_COUNT:-0}]}
echo "last: $MEGATRON_PRIME_LAST_END"
[[ $code == 71 ]] && echo "megatron-prime, rank $RANK: out of GPU memory: split the model"
exit $code"""
needs_cgroups = pytest.mark.skipif(not confines(), reason="Slurm needs version 1 of cgroups to limit memory")
REQUEUED, FAILED, COMPLETED = "PENDING", "FAILED", "COMPLETED"


@pytest.mark.parametrize(
    ("ending", "state", "code"),
    [
        pytest.param("exit 0", COMPLETED, 0, id="done"),
        pytest.param("sleep $RANK; exit 75", REQUEUED, 75, id="asked to stop, one rank after the other"),
        pytest.param("((RANK == 3)) && exit 1", FAILED, 1, id="an error of one rank"),
        pytest.param("((RANK == 3)) && kill -KILL $$", REQUEUED, 137, id="a killed rank"),
        pytest.param("exit 69", REQUEUED, 69, id="all other ranks lost one"),
        pytest.param("((RANK == 3)) && exit 71", REQUEUED, 71, id="a rank out of memory"),
        pytest.param(HOG, REQUEUED, 71, id="a rank killed by the kernel", marks=needs_cgroups),
        pytest.param(HOG_ALONE, REQUEUED, 71, id="all of a node killed by the kernel", marks=needs_cgroups),
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
        *(*SIZE, "--time=60", "--mem=300"),
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


@pytest.mark.parametrize(
    ("endings", "num_requeued", "state", "code"),
    [
        pytest.param((71, 0), 1, COMPLETED, 0, id="enough at the second start"),
        pytest.param((71, 71), 1, FAILED, 71, id="twice in a row"),
        pytest.param(
            (71, 75, 71, 0), 3, COMPLETED, 0, id="twice, but not in a row", marks=pytest.mark.minutes
        ),
    ],
)
def test_a_job_out_of_memory_is_requeued_once(slurm, tmp_path, endings, num_requeued, state, code):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    program = tmp_path / "program.sh"
    ending = ENDS_BY_START.replace("CODES", " ".join(map(str, endings)))
    program.write_text(PROGRAM.format(python=sys.executable, ending=ending))
    program.chmod(0o755)
    job = slurm.submit(
        *(*SIZE, "--time=60", f"--export=ALL,PYTHON={program}", str(SCRIPT), "no.toml"), folder=tmp_path
    )
    log = tmp_path / f"prime-{job}.log"
    ends = len(endings)
    assert until(lambda: log.exists() and log.read_text().count("ended with exit code") == ends, 120.0)
    slurm.wait(job, state, timeout_s=30.0)
    said = log.read_text()
    assert said.count("queued again") - said.count("not queued again") == num_requeued
    assert f"ended with exit code {code}:" in said and ("twice in a row" in said) == (state == FAILED)
    assert "ended with exit code 71: out of memory" in said
    assert "megatron-prime, rank N: out of GPU memory: split the model" in said
    for start, before in enumerate(endings[:-1], start=1):
        rank = (tmp_path / "logs" / f"prime-{job}" / str(start) / "rank-0.log").read_text()
        assert f"last: ended with exit code {before}:" in rank
