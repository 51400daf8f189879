"""The costs of a run are those of all its processes."""

import sys

from benchmarks.peers import trainers


def report(step_s, tokens, peak_mb):
    step = {"step_s": step_s, "cpu_s": step_s / 2, "sampling_s": step_s / 4, "sampled_tokens": tokens}
    return {"steps": [{**step, "step_s": 99.0}, step], "peak_mb": peak_mb}


def test_a_step_takes_as_long_as_its_slowest_process_and_the_warm_up_does_not_count():
    assert trainers.joined([report(2.0, 10, 100.0), report(4.0, 20, 50.0)]) == {
        "steps": [{"step_s": 4.0, "cpu_s": 3.0, "sampling_s": 1.0, "sampled_tokens": 30}],
        "peak_mb": 150.0,
    }


def test_every_process_of_trl_has_its_share_of_the_batch(tmp_path):
    trainer, one, two = (
        trainers.TRAINERS["TRL RLOO"],
        trainers.WORKLOADS["5M"],
        trainers.WORKLOADS["5M-two"],
    )
    jobs = [trainers._job(tmp_path, workload, trainer, tmp_path) for workload in (one, two)]
    assert [job["samples_per_process"] for job in jobs] == [32, 16]
    for job in jobs:
        assert job["samples_per_process"] % job["rows_per_microbatch"] == 0


def test_two_processes_are_started_by_torchrun(tmp_path):
    one, two = (
        trainers._command(tmp_path, tmp_path, workload, trainers.TRAINERS["ours RLOO tp2"], tmp_path)
        for workload in ("5M", "5M-two")
    )
    assert one[:3] == [sys.executable, "-m", "benchmarks.peers.ours"]
    assert two[1:3] == ["-m", "torch.distributed.run"] and two[-6] == "benchmarks.peers.ours"
    assert two[two.index("--nproc-per-node") + 1] == "2"
