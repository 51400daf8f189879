"""Jobs of the unchanged example script in the Slurm lab."""

import json
from pathlib import Path

from tests.slurm.slurm_lab import NODES, SlurmLab, until
from tests.support.toy_runs import MEASURED, ROOT

STEPS = 5
SCRIPT, CONFIG = ROOT / "examples" / "prime_70b.sh", ROOT / "examples" / "prime_tiny.toml"
SIZE = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1")
"""Options of sbatch that fit the script's job into the lab."""
ALL_STATES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")


class Jobs:
    """Submits the unchanged example script in the toy's folder, and reads the output of its jobs."""

    def __init__(self, lab: SlurmLab, folder: Path) -> None:
        self.lab, self.folder = lab, folder

    def submit(self, run_dir: str, options: tuple[str, ...] = (), **changes: str) -> str:
        """Submit a job with `options` of sbatch and `changes` of the configuration, and return its id."""
        return self.lab.submit(
            *(*SIZE, "--time=60", *options),
            *(str(SCRIPT), str(CONFIG), "model.path=sft", f"run_dir={run_dir}", f"trainer.num_steps={STEPS}"),
            *('data.train=["task/train.jsonl"]', 'data.evaluation=["task/heldout.jsonl"]'),
            *(f"{key}={value}" for key, value in changes.items()),
            folder=self.folder,
        )

    def finish(self, job: str) -> str:
        """Wait until a job has completed, and return its log."""
        state = self.lab.wait(job, *ALL_STATES, timeout_s=400.0)["JobState"]
        log = (self.folder / f"prime-{job}.log").read_text()
        ranks = "".join(path.read_text()[-1500:] for path in self.logs(job, 0).parent.rglob("rank-*.log"))
        assert state == "COMPLETED", f"{log}\n{ranks}"
        return log

    def logs(self, job: str, start: int) -> Path:
        return self.folder / "logs" / f"prime-{job}" / str(start)

    def until_step(self, job: str, start: int, step: int) -> None:
        log = self.logs(job, start) / "rank-0.log"
        assert until(lambda: log.exists() and f"step {step}/" in log.read_text(), 240.0)

    def pid_of_rank(self, rank: int) -> int:
        """Return the pid of a rank of the running job: the training process, not the shell around it."""
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
        """Return the metrics of every step, except those that measure the machine."""
        lines = (self.folder / run_dir / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if key.split("/")[0] not in MEASURED}
            for line in lines
        ]

    def assert_as_unbroken(self, run_dir: str, unbroken: str = "slurm_unbroken") -> None:
        assert self.history(run_dir) == self.history(unbroken)
        model = Path("hf", "model.safetensors")
        expected = (self.folder / unbroken / model).read_bytes()
        assert (self.folder / run_dir / model).read_bytes() == expected
