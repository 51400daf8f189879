"""The arithmetic task with a warmed-up model, made once per session, and complete runs on it to start and compare."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_prime.observability.rollout_log import ROLLOUTS, RolloutFile, logged_steps
from tests.support import deadlines, toy_worker
from tests.support.distributed_runner import run_distributed
from tests.support.forked_commands import FRESH

ROOT = Path(__file__).parents[2]
NUM_STEPS = 4
SAVE_EVERY = 2
CONFIG = f"""
run_dir = "run"
[model]
path = "sft"
[platform]
device = "cpu"
timeout_s = 120.0
[data]
train = ["task/train.jsonl"]
evaluation = ["task/heldout.jsonl"]
instruction = ""
[reward]
verifier = "exact_match"
[rollout]
group_size = 4
max_prompt_tokens = 32
max_response_tokens = 12
[rollout_log]
groups_per_step = "all"
[filter]
accuracy_min = 0.1
[trainer]
num_steps = {NUM_STEPS}
prompts_per_step = 8
max_tokens_per_microbatch = 512
eval_every = 2
[checkpoint]
save_every = {SAVE_EVERY}
[evaluation]
max_prompts = 32
samples_per_prompt = 2
temperature = 0.0
[evaluation.benchmarks.toy]
path = "task/benchmark.jsonl"
format = "math500"
samples_per_prompt = 4
temperature = 0.7
max_prompts = 8
[policy]
lr = 1e-3
num_minibatches = 2
[prm]
lr = 1e-3
beta = 0.1
probe = "task/probe.jsonl"
probe_every = 2
[sft]
data = ["task/sft.jsonl"]
output = "sft"
lr = 3e-3
num_steps = 150
"""
LAYOUTS = {
    "tensor=2": ["parallel.tensor=2"],
    "pipeline=2": ["parallel.pipeline=2"],
    "context=2": ["parallel.context=2"],
    "data=2": ["parallel.num_processes=2"],
}
"""Layouts of two processes: name -> overrides."""
MEASURED = ("time", "throughput", "memory")
"""Groups of metrics that differ between two otherwise equal runs."""


@dataclass(frozen=True)
class Toy:
    """A working folder with task/, the warmed-up model sft/, run.toml, and the results of finished runs."""

    folder: Path
    facts: dict[str, Any]
    """Facts about the single-process run, as returned by toy_worker.prepare."""

    def run_dir(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Return the task with its warmed-up model, and an uninterrupted run of one process in `single`."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "run.toml").write_text(CONFIG)
    (facts,) = run_distributed(toy_worker.prepare, 1, str(folder))
    return Toy(folder, facts)


@pytest.fixture(scope="session")
def two_processes(toy: Toy) -> list[dict[str, list[float]]]:
    """Run each layout of two processes without interruption; return the history of a few SFT steps, by rank."""
    return run_distributed(toy_worker.train_layouts, 2, str(toy.folder), LAYOUTS)


@pytest.fixture(scope="session")
def stale_step(toy: Toy) -> dict[str, Any]:
    """Return a recorded step in which the engine has stale weights; see toy_worker.stale_step."""
    (found,) = run_distributed(toy_worker.stale_step, 1, str(toy.folder))
    return found


@pytest.fixture(scope="session")
def layout_runs(toy: Toy, two_processes: list[dict[str, list[float]]]) -> dict[str, Path]:
    """Return the folder of an uninterrupted run in each layout of two processes."""
    return {layout: toy.run_dir(layout) for layout in LAYOUTS}


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a command that a user starts, without the variables of a rank."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | changes


def command(*arguments: str, is_fresh: bool = False) -> list[str]:
    """Return the command line of `megatron-prime ARGUMENTS`; fresh if it must not be forked (see forked_commands)."""
    return [sys.executable, *(FRESH if is_fresh else ()), "-m", "megatron_prime", *arguments]


class Started:
    """A command in a process of its own, which is killed at the end of the `with` block at the latest."""

    def __init__(self, folder: Path, *arguments: str, is_fresh: bool = False) -> None:
        self.log = folder / f"log{time.monotonic_ns()}.txt"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command(*arguments, is_fresh=is_fresh),
                cwd=folder,
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.family():
            if process.is_running():
                process.kill()
        self.process.kill()
        self.process.wait()

    def family(self) -> list[psutil.Process]:
        """Return every descendant process of the command seen so far."""
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass
        return list(self._seen.values())

    def ranks(self) -> list[psutil.Process]:
        """Return the launcher's children, by rank."""
        children = [process for process in self.family() if process.ppid() == self.process.pid]
        return sorted(children, key=lambda process: process.pid)

    def wait_until(self, is_time: Callable[[], bool], timeout_s: float = 300) -> None:
        deadline = time.monotonic() + deadlines.seconds(timeout_s)
        while not is_time():
            assert self.process.poll() is None, f"it ended early:\n{self.output()}"
            assert time.monotonic() < deadline, f"the condition never became true:\n{self.output()}"
            time.sleep(0.002)

    def all_gone(self, timeout_s: float = 60) -> bool:
        """Wait until the command and its descendants have ended (zombies count as ended); False after the timeout."""
        self.process.wait(deadlines.seconds(timeout_s))
        deadline = time.monotonic() + deadlines.seconds(timeout_s)
        while any(_is_alive(process) for process in self._seen.values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def output(self) -> str:
        return self.log.read_text()[-4000:]


def finish(folder: Path, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return its result."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=deadlines.seconds(timeout_s),
        check=False,
    )


def records(run_dir: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl without measured values such as times."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name.split("/")[0] not in MEASURED}
        for line in lines
    ]


def rollouts(run_dir: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the rows of each logged step."""
    logged = {}
    for step, path in logged_steps(run_dir / ROLLOUTS).items():
        with RolloutFile(path) as file:
            logged[step] = [dict(row) for row in file.rows()]
    return logged


def weights(checkpoint: Path) -> dict[str, bytes]:
    """Return the bytes of an HF checkpoint's weight files."""
    files = {path.name: path.read_bytes() for path in sorted(checkpoint.glob("*.safetensors"))}
    assert files
    return files


def checkpoint_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def is_saving(run_dir: Path, step: int) -> bool:
    final = checkpoint_of(run_dir, step)
    return any(final.parent.glob(f".{final.name}.attempt*.partial"))


def is_logged(run_dir: Path, step: int) -> bool:
    path = run_dir / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def differences(left: Sequence[dict[str, float]], right: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return {metric: largest difference over the steps}, relative to the value where that exceeds 1."""
    assert [[*record] for record in left] == [[*record] for record in right], "other steps or other metrics"
    largest: dict[str, float] = {}
    for mine, other in zip(left, right, strict=True):
        for name, value in mine.items():
            if value is None or other[name] is None:  # not finite: there was nothing to count
                assert value is other[name], name
                continue
            gap = abs(value - other[name]) / max(1.0, abs(value))
            largest[name] = max(largest.get(name, 0.0), gap)
    return largest


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
