"""Kill a training run repeatedly at random moments, and compare its results to those of an uninterrupted run.

    python -m tools.chaos run.toml --work chaos --kills 50 --seed 0 parallel.num_processes=2 checkpoint.async_save=true
    python -m tools.chaos run.toml --work chaos-ahead --kills 50 rollout.max_staleness=1

SIGKILL is sent to one rank, to the launcher, or to all processes at once; during the start, in the middle of a step,
while a checkpoint is being written, or just after a checkpoint was published. Then the run is restarted and killed
again. Every run that finishes must have the same metrics (except measured times and sizes) and the same weights as the
uninterrupted run, intact checkpoints that hold the same batches sampled ahead, and no partial files. A kill must leave
no process behind. The exit code is 1 if anything differs.
"""

import argparse
import atexit
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from megatron_prime.config.loading import load_config
from megatron_prime.rollout.held_batch import TENSORS, TEXT
from megatron_prime.training.checkpoint.manifest import faults, read_manifest

MEASURED = ("time", "throughput", "memory")
"""Groups of metrics that are measured, and therefore differ between two equal runs."""
MOMENTS = ("start", "step", "save", "saved")
TARGETS = ("rank", "launcher", "everything")
EXIT_TIMEOUT_S = 60.0
"""Time in which the other processes of a killed run must exit."""
POLL_S = 0.001


@dataclass
class Tally:
    """Counts of kills and attempts, and the differences that were found."""

    kills: Counter[str] = field(default_factory=Counter)
    """Number of kills by moment and target."""
    num_runs: int = 0
    num_attempts: int = 0
    faults: list[str] = field(default_factory=list)
    remaining_kinds: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of moment and target that have not been used since all pairs were last used once."""

    @property
    def num_kills(self) -> int:
        """Total number of kills."""
        return sum(self.kills.values())

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report for people."""
        for name, count in sorted(self.kills.items()):
            yield f"{count:4d} x {name}"
        yield (
            f"{self.num_kills} kills, {self.num_attempts} attempts, {self.num_runs} finished runs: "
            + (f"{len(self.faults)} faults" if self.faults else "all bit-identical to the uninterrupted run")
        )
        yield from self.faults


@dataclass(frozen=True)
class Setting:
    """The run to kill, and the folder to run it in."""

    config: Path
    overrides: Sequence[str]
    work: Path

    @property
    def has_launcher(self) -> bool:
        """Whether the process of the command is a launcher, whose children are the ranks, or the only rank."""
        parallel = load_config(self.config, self.overrides).parallel
        return (parallel.num_processes or parallel.min_processes) > 1

    def start(self, run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start an attempt of the training in a new process; its output is appended to `log`."""
        command = [sys.executable, "-m", "megatron_prime", "train", str(self.config), *self.overrides]
        with log.open("ab") as file:
            return subprocess.Popen([*command, f"run_dir={run_dir}"], stdout=file, stderr=subprocess.STDOUT)


def uninterrupted_run(setting: Setting) -> Path:
    """Return the run_dir of a run without kills; it is executed once per work folder."""
    run_dir = setting.work / "uninterrupted"
    if not (run_dir / "hf").is_dir():
        started = time.monotonic()
        code = setting.start(run_dir, setting.work / "uninterrupted.log").wait()
        assert code == 0, f"the uninterrupted run failed: see {setting.work / 'uninterrupted.log'}"
        print(f"uninterrupted run: {time.monotonic() - started:.0f} s", flush=True)
    return run_dir


def kill_runs(setting: Setting, expected: Path, num_kills: int, max_kills_per_run: int, seed: int) -> Tally:
    """Run, kill, restart and compare until `num_kills` kills were made.

    Args:
        setting: the run.
        expected: run_dir of the uninterrupted run.
        num_kills: total number of kills, over all runs.
        max_kills_per_run: each run is killed between 1 and this many times before it may finish.
        seed: of the moments and targets.
    """
    generator, tally = random.Random(seed), Tally()
    while tally.num_kills < num_kills:
        run_dir = setting.work / f"seed{seed}_run{tally.num_runs}"
        shutil.rmtree(run_dir, ignore_errors=True)
        log = run_dir.with_suffix(".log")
        log.unlink(missing_ok=True)
        wanted = min(generator.randint(1, max_kills_per_run), num_kills - tally.num_kills)
        found = _run_with_kills(setting, run_dir, log, wanted, generator, tally)
        tally.num_runs += 1
        found = found or compare(expected, run_dir)
        tally.faults += [f"{run_dir.name}: {fault}" for fault in found]
        print(f"{run_dir.name}: {tally.num_kills} kills so far, {'; '.join(found) or 'equal'}", flush=True)
        if not found:
            shutil.rmtree(run_dir)
    return tally


def _run_with_kills(
    setting: Setting, run_dir: Path, log: Path, num_kills: int, generator: random.Random, tally: Tally
) -> list[str]:
    """Kill a run `num_kills` times, then let it finish; return the faults seen on the way."""
    done = 0
    process: subprocess.Popen[bytes] | None = None
    # When this tool is interrupted it must not leave a run behind. The ranks end with their launcher.
    atexit.register(lambda: process and process.kill())
    while True:
        process = setting.start(run_dir, log)
        tally.num_attempts += 1
        is_last = done == num_kills
        # Dealing from a shuffled list instead of drawing independently covers every pair early on.
        if not tally.remaining_kinds:
            tally.remaining_kinds = list(itertools.product(MOMENTS, TARGETS))
            generator.shuffle(tally.remaining_kinds)
        moment, target = tally.remaining_kinds.pop()
        if is_last or not _wait_for(moment, run_dir, process, generator):
            code = process.wait()
            # An attempt may finish before its moment comes; the run then had fewer kills than planned.
            return [] if code == 0 else [f"exit code {code} after {done} kills: see {log}"]
        family = _kill(process, target, generator, setting.has_launcher)
        tally.kills[f"{moment}, {target}"] += 1
        done += 1
        left = _left_after(family, EXIT_TIMEOUT_S)
        if left:
            for other in left:
                other.kill()
            pids = [other.pid for other in left]
            return [f"processes {pids} are still running after the kill ({moment}, {target}): see {log}"]


def _wait_for(moment: str, run_dir: Path, process: subprocess.Popen[bytes], generator: random.Random) -> bool:
    """Wait for the moment and a random time after it; return False if the process ended before."""
    checkpoints = run_dir / "checkpoints"
    # Only what this attempt adds counts: earlier attempts have left checkpoints and partial folders.
    known = {path.name for path in checkpoints.glob("*step_*")}
    num_logged = _num_lines(run_dir / "metrics.jsonl")
    has_come: Callable[[], bool]
    if moment == "start":
        # This covers imports, the start of the process group, building the models and loading a checkpoint.
        has_come, longest_s = (lambda: True), 8.0
    elif moment == "step":
        # A record has been logged, so the kill comes during the next step.
        has_come, longest_s = (lambda: _num_lines(run_dir / "metrics.jsonl") > num_logged), 1.5
    elif moment == "save":
        has_come = lambda: any(path.name not in known for path in checkpoints.glob(".step_*.partial"))  # noqa: E731
        longest_s = 0.3
    else:
        has_come = lambda: any(path.name not in known for path in checkpoints.glob("step_*"))  # noqa: E731
        longest_s = 0.1
    while not has_come():
        if process.poll() is not None:
            return False
        time.sleep(POLL_S)
    time.sleep(generator.uniform(0, longest_s))
    return process.poll() is None


def _num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _kill(
    process: subprocess.Popen[bytes], target: str, generator: random.Random, has_launcher: bool
) -> list[psutil.Process]:
    """Send SIGKILL to the target; return all other processes of the run, which must exit soon."""
    launcher = psutil.Process(process.pid)
    family = launcher.children(recursive=True)
    # The children of a single rank are writers of checkpoints and verifiers, whose end need not end the run.
    ranks = [child for child in family if has_launcher and child.ppid() == process.pid] or [launcher]
    killed = {"rank": [generator.choice(ranks)], "launcher": [launcher], "everything": [launcher, *family]}
    for victim in killed[target]:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    return family


def _left_after(family: Sequence[psutil.Process], longest_s: float) -> list[psutil.Process]:
    """Wait until all processes have exited, at most `longest_s`; return those that have not."""
    deadline = time.monotonic() + longest_s
    while True:
        left = [other for other in family if _is_running(other)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _is_running(process: psutil.Process) -> bool:
    try:
        # A zombie has exited already, and only waits to be reaped.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def compare(expected: Path, actual: Path) -> list[str]:
    """Return the differences between the run_dirs of two finished runs; empty when their results are equal."""
    found = []
    mine, theirs = _history(expected), _history(actual)
    if mine != theirs:
        at = next(
            (k for k, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), "the end"
        )
        found.append(f"metrics differ from record {at} on ({len(mine)} and {len(theirs)} records)")
    # safetensors files are written deterministically, so equal weights are equal bytes.
    for path in sorted((expected / "hf").glob("*.safetensors")):
        if path.read_bytes() != (actual / "hf" / path.name).read_bytes():
            found.append(f"weights in {path.name} differ")
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (expected, actual)]
    if names[0] != names[1]:
        found.append(f"checkpoints {names[1]} instead of {names[0]}")
    for checkpoint in (actual / "checkpoints").glob("step_*"):
        original = expected / "checkpoints" / checkpoint.name
        if held_text(checkpoint) != held_text(original):
            found.append(f"{checkpoint.name}: {TEXT} differs")
        if _bytes_of(checkpoint / TENSORS) != _bytes_of(original / TENSORS):
            found.append(f"{checkpoint.name}: {TENSORS} differs")
        found += [f"{checkpoint.name}: {fault}" for fault in faults(checkpoint, read_manifest(checkpoint))]
    return found


def held_text(checkpoint: Path) -> str:
    """Return the text of the batch that a checkpoint holds, without what is measured; empty if it holds none."""
    text = json.loads(_bytes_of(checkpoint / TEXT) or b"{}")
    return json.dumps({name: value for name, value in text.items() if name not in MEASURED})


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _history(run_dir: Path) -> list[dict[str, float | None]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name.split("/")[0] not in MEASURED}
        for record in records
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path, help="TOML file of a run of a few steps and checkpoints")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; it is kept")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--max-kills-per-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--uninterrupted", type=Path, help="run_dir of an uninterrupted run; default: run one"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    # Without a handler, SIGTERM would skip the atexit functions that end the current run.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    setting = Setting(options.config, options.overrides, options.work)
    expected = options.uninterrupted or uninterrupted_run(setting)
    tally = kill_runs(setting, expected, options.kills, options.max_kills_per_run, options.seed)
    print("\n".join(tally.lines()))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
