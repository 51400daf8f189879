"""Runs of the product, each in a process forked from a server that has imported it, with their CPU time by step."""

import contextlib
import fcntl
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.learning.demonstrations import write_demonstrations, write_right_demonstrations
from benchmarks.learning.methods import RIGHT_DEMONSTRATIONS, settings_of
from benchmarks.learning.tasks import TASKS, ChainTask
from megatron_prime.cli.main import main
from megatron_prime.parallel.lifeline import die_with_parent

ROOT = Path(__file__).parents[2]
BASE = Path(__file__).with_name("base.toml")
_FORKS = multiprocessing.get_context("forkserver")
"""Forks from a server of its own, because a fork of a process with threads, such as that of the tests, may hang."""
_FORKS.set_forkserver_preload([f"megatron_prime.cli.{name}" for name in ("sft", "train", "assemble")])
LOGGED = "rloo"
"""The method whose rollout log is kept."""
_ON_DEMONSTRATIONS = (
    "prm.beta=1.0",
    "prm_training.num_steps=40",
    "prm_training.prompts_per_step=128",
    "prm_training.lr=1e-3",
)
PRMS = {
    "log": ("prm_training.num_steps=100", "prm_training.prompts_per_step=64", "prm_training.lr=5e-4"),
    "demonstrations": _ON_DEMONSTRATIONS,
    "marks": (*_ON_DEMONSTRATIONS, "prm.scored_tokens=environment"),
}
"""Settings of the PRMs that `train-prm` makes.

log: about four passes over the rollout log of a run, 64 prompts x 4 responses at a time. The others: one pass over the
demonstrations with their outcomes; `marks` scores what the environment wrote alone.
"""
PLACEHOLDERS = {"log": "{prm}"} | {name: f"{{prm:{name}}}" for name in PRMS if name != "log"}
"""The word for each folder in the overrides of a method."""
POLL_S = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Job:
    """One training run."""

    task: str
    method: str
    seed: int
    tried: tuple[str, ...] = ()
    """Overrides behind those of the method: settings that are tried on tuning seeds."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of the method, each once, in the order in which they take effect."""
        chosen = settings_of(self.method, self.task) | dict(each.split("=", 1) for each in self.tried)
        return tuple(f"{key}={value}" for key, value in sorted(chosen.items()))

    @property
    def name(self) -> str:
        """A name that stands for task, method, settings and seed."""
        return " ".join((self.task, self.method, *self.tried, f"seed {self.seed}"))

    def folder(self, root: Path) -> Path:
        """Return the folder of the run."""
        words = "_".join(each.replace("/", "-") for each in (self.method, *self.tried))
        return root / self.task / f"seed{self.seed}" / words


@dataclass
class Usage:
    """The time that a command took."""

    exit_code: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """CPU time of the process and of all that it has started."""
    cpu_at_step: list[float] = field(default_factory=list)
    """CPU seconds up to each line of metrics.jsonl."""


def fine_tuned(task: str, seed: int, root: Path) -> Path:
    """Return the folder of a task with task/, its data, and sft/, its model; both are made if they are missing."""
    folder = root / task / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "sft.lock"):
        if not (folder / "task").exists():
            TASKS[task].write(folder / "partial", seed)
            (folder / "partial").rename(folder / "task")
        _fine_tune(task, seed, folder, folder / "task/sft.jsonl", "sft")
    return folder


def fine_tuned_on_right(task: str, seed: int, root: Path) -> Path:
    """Return a model that was fine-tuned on the right demonstrations alone; it is made if it is missing."""
    folder, found = fine_tuned(task, seed, root), TASKS[task]
    assert isinstance(found, ChainTask)
    right = folder / "right.jsonl"
    with locked(folder / "sft.lock"):
        write_right_demonstrations(right, found, folder / "task/sft.jsonl")
        return _fine_tune(task, seed, folder, right, "sft_right")


def _fine_tune(task: str, seed: int, folder: Path, data: Path, name: str) -> Path:
    """Return the folder of a task's model that is fine-tuned on some demonstrations, unless it is there already."""
    output, log = folder / name, folder / f"{name}.log"
    if not (output / "config.json").exists():
        words = [
            "sft",
            str(BASE),
            *shared(task, seed, folder),
            f'sft.data=["{data}"]',
            f"sft.output={output}",
        ]
        words += [f"model.path={folder / 'task/model'}", f"run_dir={folder / f'{name}_run'}"]
        if command(words, log).exit_code:
            raise RuntimeError(f"SFT of {task}, seed {seed}, failed: see {log}")
    return output


def shared(task: str, seed: int, folder: Path) -> list[str]:
    """Return the overrides of all commands on a task."""
    return [
        *TASKS[task].overrides(),
        f"seed={seed}",
        f'data.train=["{folder / "task/train.jsonl"}"]',
    ]


def train(job: Job, root: Path) -> Usage:
    """Carry out a training run in its folder, which must be empty."""
    start = fine_tuned(job.task, job.seed, root)
    folder = job.folder(root)
    overrides = [each.replace("{sft}", str(start / "sft")) for each in job.overrides]
    for name, placeholder in PLACEHOLDERS.items():
        if f"prm.path={placeholder}" in overrides:
            path = pretrained_prm(job.task, job.seed, root, name)
            overrides[overrides.index(f"prm.path={placeholder}")] = f"prm.path={path}"
    model = start / "sft"
    if RIGHT_DEMONSTRATIONS in overrides:
        overrides.remove(RIGHT_DEMONSTRATIONS)
        model = fine_tuned_on_right(job.task, job.seed, root)
    paths = [f"model.path={model}", f"run_dir={folder}"]
    words = ["train", str(BASE), *shared(job.task, job.seed, start), *overrides, *paths]
    usage = command(words, folder / "output.log", folder / "metrics.jsonl")
    if job == Job(job.task, LOGGED, job.seed) and usage.exit_code == 0:
        shutil.copytree(folder / "rollouts", start / "logged", dirs_exist_ok=True)
    return usage


def pretrained_prm(task: str, seed: int, root: Path, name: str) -> Path:
    """Return the folder of one of the PRMS, which is trained if it is missing.

    Raises:
        RuntimeError: the run whose log it needs has not been carried out in this folder, or the training failed.
    """
    start = fine_tuned(task, seed, root)
    folder = start / f"prm_{name}"
    with locked(start / "prm.lock"):
        if not (folder / "config.json").exists():
            responses = start / ("logged" if name == "log" else "demonstrations.parquet")
            if name == "log" and not responses.exists():
                raise RuntimeError(f"{task}, seed {seed}: run the method {LOGGED} first")
            found = TASKS[task]
            if name != "log":
                assert isinstance(found, ChainTask)
                write_demonstrations(responses, found, start / "task/sft.jsonl", start / "sft")
            words = ["train-prm", str(BASE), *shared(task, seed, start), *PRMS[name]]
            words += [f"model.path={start / 'sft'}", f"run_dir={start / f'prm_{name}_run'}"]
            words += [f'prm_training.responses=["{responses}"]', f"prm_training.output={folder}"]
            words += ["prm_training.lr_decay=linear"]
            usage = command(words, start / f"prm_{name}.log")
            if usage.exit_code:
                raise RuntimeError(f"the PRM of {task}, seed {seed}, failed: see {start / f'prm_{name}.log'}")
    return folder


def command(words: Sequence[str], log: Path, metrics: Path | None = None) -> Usage:
    """Run `megatron-prime WORDS` in a process of its own, with its output in a file."""
    started, usage = time.perf_counter(), Usage()
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_be_command, args=(words, log, sender))
    process.start()
    sender.close()
    assert process.pid is not None
    while process.is_alive():
        process.join(POLL_S)
        if metrics is not None:
            _note_steps(metrics, process.pid, usage)
    assert process.exitcode is not None
    usage.exit_code = process.exitcode
    usage.seconds = time.perf_counter() - started
    with contextlib.suppress(EOFError):  # It was killed, and could not say.
        usage.cpu_seconds = receiver.recv()
    return usage


def _be_command(words: Sequence[str], log: Path, cpu_seconds: Connection) -> None:
    """Run the command in a process that was just forked; at its end, send the CPU time that it took."""
    die_with_parent(os.getppid())
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        code = main(words)
    finally:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_seconds.send(sum(each.ru_utime + each.ru_stime for each in used))
    sys.exit(code)


def _note_steps(metrics: Path, pid: int, usage: Usage) -> None:
    """Add the CPU time so far for each line that is new."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        num_lines = metrics.read_bytes().count(b"\n")
        if num_lines > len(usage.cpu_at_step):
            now = sum(_cpu_seconds(each) for each in _family(pid))
            usage.cpu_at_step += [now] * (num_lines - len(usage.cpu_at_step))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _family(int(child))


def _cpu_seconds(pid: int) -> float:
    # Fields 14 to 17 are the times of the process and of its children that have ended; the name may hold blanks.
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / TICKS


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, so that several queues can share a folder."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
