"""Slurm announces a time limit or a preemption: the run saves a checkpoint, and resumes exactly.

A preemption is announced in one of two ways, which a cluster's administrators choose: by the signal that the job asked
for (preempt_send_user_signal), to the script only, or by SIGTERM to every process of the ranks.
"""

import pytest

from tests.slurm.slurm_lab import NODES, until

pytestmark = pytest.mark.minutes

LONG = {
    "trainer.num_steps": "60",
    "trainer.eval_every": "0",
    "checkpoint.save_every": "0",
    "filter.accuracy_min": "0.0",
    "filter.accuracy_max": "1.0",
}
"""Settings of a run longer than Slurm's shortest time limit (one minute) that saves only when asked to stop."""


@pytest.fixture(scope="module")
def long_unbroken(jobs) -> str:
    """Return the folder of an uninterrupted run with these settings."""
    log = jobs.finish(jobs.submit("slurm_long", **LONG))
    assert "steps finished: 60 of 60" in log and "queued again" not in log
    return "slurm_long"


@pytest.fixture(params=["preempt_send_user_signal", ""], ids=["USR1", "SIGTERM"])
def preemption(jobs, request) -> str:
    """Set how the lab announces a preemption, with a grace time of one minute."""
    jobs.lab.configure("SlurmctldParameters", request.param)
    yield request.param
    jobs.lab.configure("SlurmctldParameters", "preempt_send_user_signal")


def test_a_run_saves_before_its_time_limit_and_resumes(jobs, long_unbroken):
    """Slurm checks time limits every 30 s: a signal requested 20 s before the end comes 20 to 50 s before it."""
    job = jobs.submit("slurm_limit", ("--time=1", "--signal=B:USR1@20"), **LONG)
    assert until(lambda: jobs.lab.job(job).get("Restarts") == "1", 180.0)
    jobs.lab.update(job, "TimeLimit=60")
    log = jobs.finish(job)
    assert "ended with exit code 75: the run was asked to stop, and saved" in log
    assert log.count("queued again") == 1 and "TIME LIMIT" not in log
    jobs.assert_as_unbroken("slurm_limit", long_unbroken)


def test_a_run_preempted_by_a_job_of_higher_priority_resumes(jobs, long_unbroken, preemption):
    run_dir = f"slurm_preempted_{preemption}"
    job = jobs.submit(run_dir, **LONG)
    jobs.until_step(job, 0, 1)
    urgent = jobs.lab.submit(
        *("--partition=urgent", "--nodes=2", "--exclusive", "--output=urgent-%j.log"),
        *("--wrap", "srun hostname"),
        folder=jobs.folder,
    )
    assert jobs.lab.wait(urgent, "COMPLETED")["Restarts"] == "0"
    assert sorted((jobs.folder / f"urgent-{urgent}.log").read_text().split()) == sorted(NODES)
    log = jobs.finish(job)
    assert "ended with exit code 75: the run was asked to stop, and saved" in log
    assert log.count("queued again") == 1 and log.count("start 1 of") == 1
    assert "DUE TO PREEMPTION" not in log, "it left before the time of grace was over"
    said = (jobs.logs(job, 0) / "rank-0.log").read_text()
    assert ("CANCELLED AT" in said) == (not preemption), "Slurm's log of the step reports its SIGTERM"
    jobs.assert_as_unbroken(run_dir, long_unbroken)


def test_a_preemption_without_notice_loses_the_steps_since_the_last_checkpoint(jobs, long_unbroken):
    jobs.lab.update_partition("main", "GraceTime=0")
    try:
        job = jobs.submit("slurm_abrupt", **LONG | {"checkpoint.save_every": "10"})
        jobs.until_step(job, 0, 12)
        urgent = jobs.lab.submit("--partition=urgent", "--nodes=2", "--wrap=true", folder=jobs.folder)
        jobs.lab.wait(urgent, "COMPLETED")
        log = jobs.finish(job)
    finally:
        jobs.lab.update_partition("main", "GraceTime=60")
    assert "start 1 of" in log and "asked to stop" not in log
    assert "resuming after step" in (jobs.logs(job, 1) / "rank-0.log").read_text()
    jobs.assert_as_unbroken("slurm_abrupt", long_unbroken)
