"""examples/prime_70b.sh on a real Slurm of two nodes: finished runs, and runs that were stopped or broken on the way.

The first test is part of every run of the suite. The others take minutes each: MEGATRON_PRIME_SLURM=all runs them.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sglang_live import engine_python
from slurm_lab import NODES, SlurmLab, missing, until
from toy_runs import MEASURED, ROOT, Toy

REASON = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
everything = pytest.mark.skipif(
    os.environ.get("MEGATRON_PRIME_SLURM") != "all", reason="takes minutes: MEGATRON_PRIME_SLURM=all runs it"
)
STEPS = 5
SCRIPT, CONFIG = ROOT / "examples" / "prime_70b.sh", ROOT / "examples" / "prime_tiny.toml"


class Jobs:
    """Submits the example script, as it is, in the toy's folder, and looks at what its jobs leave."""

    def __init__(self, lab: SlurmLab, folder: Path) -> None:
        self.lab, self.folder = lab, folder

    def submit(self, run_dir: str, **changes: str) -> str:
        return self.lab.submit(
            *("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=60"),
            *(str(SCRIPT), str(CONFIG), "model.path=sft", f"run_dir={run_dir}", f"trainer.num_steps={STEPS}"),
            *('data.train=["task/train.jsonl"]', 'data.evaluation=["task/heldout.jsonl"]'),
            *(f"{key}={value}" for key, value in changes.items()),
            folder=self.folder,
        )

    def finish(self, job: str) -> str:
        """Wait for the end of a job; returns its log."""
        state = self.lab.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=400.0)["JobState"]
        log = (self.folder / f"prime-{job}.log").read_text()
        ranks = "".join(path.read_text()[-1500:] for path in self.logs(job, 0).parent.rglob("rank-*.log"))
        assert state == "COMPLETED", f"{log}\n{ranks}"
        return log

    def logs(self, job: str, start: int) -> Path:
        return self.folder / "logs" / f"prime-{job}" / str(start)

    def until_step(self, job: str, start: int, step: int) -> None:
        log = self.logs(job, start) / "rank-0.log"
        assert until(lambda: log.exists() and f"step {step}/{STEPS}" in log.read_text(), 240.0)

    def pid_of_rank(self, rank: int) -> int:
        """In the job that runs: the process itself, not the shell around it."""
        for node in NODES:
            for pid in self.lab.pids_in(node):
                proc = Path("/proc", str(pid))
                words = (proc / "cmdline").read_bytes().split(b"\0")
                if b"-m" in words[:2] and f"RANK={rank}".encode() in (proc / "environ").read_bytes().split(
                    b"\0"
                ):
                    return pid
        raise AssertionError(f"no rank {rank}")

    def history(self, run_dir: str) -> list[dict[str, float]]:
        """Metrics of every step, without those that measure the machine."""
        lines = (self.folder / run_dir / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if key.split("/")[0] not in MEASURED}
            for line in lines
        ]

    def assert_as_unbroken(self, run_dir: str) -> None:
        assert self.history(run_dir) == self.history("slurm_unbroken")
        model = Path("hf", "model.safetensors")
        expected = (self.folder / "slurm_unbroken" / model).read_bytes()
        assert (self.folder / run_dir / model).read_bytes() == expected


@pytest.fixture(scope="module")
def jobs(toy: Toy, tmp_path_factory):
    lab = SlurmLab(tmp_path_factory.mktemp("slurm"))
    lab.environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    (toy.folder / "tools").symlink_to(ROOT / "tools")
    try:
        lab.start()
        yield Jobs(lab, toy.folder)
    finally:
        lab.stop()
        (toy.folder / "tools").unlink()


@pytest.fixture(scope="module")
def unbroken(jobs: Jobs) -> str:
    """The log of a job that nothing happened to."""
    return jobs.finish(jobs.submit("slurm_unbroken"))


def test_a_job_that_is_asked_to_stop_saves_is_queued_again_and_ends_where_an_unbroken_one_does(
    jobs: Jobs, unbroken: str
):
    assert "ended with exit code 0: the run is done\nsteps done: 5 of 5" in unbroken
    assert (jobs.folder / "slurm_unbroken" / "provenance" / "life_0001.json").is_file()
    job = jobs.submit("slurm_stopped")
    jobs.until_step(job, 0, 1)
    # What Slurm does by itself so many seconds before the time limit (--signal=B:USR1@900).
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=jobs.lab.environment, check=True)
    log = jobs.finish(job)
    assert "ended with exit code 75: the run was asked to stop, and saved" in log
    assert log.count("queued again") == 1 and log.count("start 1 of") == 1
    jobs.assert_as_unbroken("slurm_stopped")
    for start in (0, 1):
        assert sorted(p.name for p in jobs.logs(job, start).glob("rank-*")) == [
            f"rank-{r}.log" for r in range(4)
        ]


@everything
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(jobs: Jobs, unbroken: str):
    job = jobs.submit("slurm_rank")
    jobs.until_step(job, 0, 3)
    os.kill(jobs.pid_of_rank(3), signal.SIGKILL)
    log = jobs.finish(job)
    assert "a rank or a node was lost" in log and log.count("queued again") == 1
    jobs.assert_as_unbroken("slurm_rank")


@everything
def test_a_killed_node_gives_the_job_another_life(jobs: Jobs, unbroken: str):
    job = jobs.submit("slurm_node")
    jobs.until_step(job, 0, 3)
    for pid in (jobs.lab.pid_of(f"slurmd.{NODES[1]}"), *jobs.lab.pids_in(NODES[1])):
        if pid is not None and Path("/proc", str(pid)).exists():
            os.kill(pid, signal.SIGKILL)
    assert until(lambda: jobs.lab.job(job)["Restarts"] == "1", 120.0)
    jobs.lab.start_node(NODES[1])
    jobs.finish(job)
    jobs.assert_as_unbroken("slurm_node")


@everything
def test_a_cut_network_leaves_one_writer(jobs: Jobs, unbroken: str):
    job = jobs.submit("slurm_cut", **{"checkpoint.save_every": "1"})
    jobs.until_step(job, 0, 2)
    orphan = jobs.pid_of_rank(0)
    jobs.lab.cut(NODES[0], True)
    assert until(lambda: jobs.lab.job(job)["Restarts"] == "1", 120.0)
    assert Path("/proc", str(orphan)).exists(), "rank 0 lives on, where Slurm cannot reach it"
    jobs.lab.cut(NODES[0], False)
    jobs.finish(job)
    lease = json.loads((jobs.folder / "slurm_cut" / "lease.json").read_text())
    assert (lease["life"], lease["restart_count"]) == (2, 1)
    assert jobs.history("slurm_cut") == jobs.history("slurm_unbroken")


@everything
def test_servers_on_both_nodes_serve_a_job_and_one_that_dies_comes_back(jobs: Jobs):
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
    assert "steps done: 5 of 5" in log
    assert "SGLang server 1 ended; restart 1" in (jobs.logs(job, 0) / "rank-2.log").read_text()


def is_server(pid: int) -> bool:
    """Whether it is the main process of an SGLang server."""
    words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    return b"sglang.launch_server" in words and not any(b"sglang_child" in word for word in words)
