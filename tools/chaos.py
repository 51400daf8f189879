"""Kills a training run at random moments, again and again, and compares what it ends with to an unbroken run.

    python tools/chaos.py run.toml --work chaos --kills 50 --seed 0 parallel.num_processes=2 checkpoint.async_save=true

The run is killed by SIGKILL: one rank, the launcher, or everything at once; while it starts, in the middle of a step,
while a checkpoint is being written, or just after one got its name. Then it is started again, and killed again. Each
run that reaches its end must hold the very metrics (wall-clock measurements apart) and the very weights of the unbroken
run, sound checkpoints and nothing half written; each kill must leave no process behind. Exit code 1 when something
differs.
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

from megatron_prime.training.checkpoint.manifest import faults, read_manifest

MEASURED = ("time", "throughput", "memory")
"""Groups of metrics that are measured rather than computed."""
MOMENTS = ("start", "step", "save", "saved")
VICTIMS = ("rank", "launcher", "everything")
GONE_S = 60.0
"""What processes get to disappear after a kill."""
POLL_S = 0.001


@dataclass
class Tally:
    """What was done and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    """Moment and victim -> kills."""
    num_runs: int = 0
    num_lives: int = 0
    faults: list[str] = field(default_factory=list)
    deck: list[tuple[str, str]] = field(default_factory=list)
    """Moments and victims that are still to come before any comes again."""

    @property
    def num_kills(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def lines(self) -> Iterator[str]:
        """For a person."""
        for name, count in sorted(self.kills.items()):
            yield f"{count:4d} x {name}"
        yield (
            f"{self.num_kills} kills, {self.num_lives} lives, {self.num_runs} runs to the end: "
            + (f"{len(self.faults)} faults" if self.faults else "all equal to the unbroken run, bit for bit")
        )
        yield from self.faults


@dataclass(frozen=True)
class Setting:
    """What is run, and where."""

    config: Path
    overrides: Sequence[str]
    work: Path

    def start(self, run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start the training in a new process."""
        command = [sys.executable, "-m", "megatron_prime", "train", str(self.config), *self.overrides]
        with log.open("ab") as file:
            return subprocess.Popen([*command, f"run_dir={run_dir}"], stdout=file, stderr=subprocess.STDOUT)


def unbroken_run(setting: Setting) -> Path:
    """The run that nothing happens to; made once a work folder."""
    run_dir = setting.work / "unbroken"
    if not (run_dir / "hf").is_dir():
        started = time.monotonic()
        code = setting.start(run_dir, setting.work / "unbroken.log").wait()
        assert code == 0, f"the unbroken run failed: see {setting.work / 'unbroken.log'}"
        print(f"unbroken run: {time.monotonic() - started:.0f} s", flush=True)
    return run_dir


def torment(setting: Setting, unbroken: Path, num_kills: int, most_kills_a_run: int, seed: int) -> Tally:
    """Kill and restart until there were so many kills; returns what came of it."""
    chance, tally = random.Random(seed), Tally()
    while tally.num_kills < num_kills:
        run_dir = setting.work / f"seed{seed}_run{tally.num_runs}"
        shutil.rmtree(run_dir, ignore_errors=True)
        log = run_dir.with_suffix(".log")
        log.unlink(missing_ok=True)
        wanted = min(chance.randint(1, most_kills_a_run), num_kills - tally.num_kills)
        found = _live_and_die(setting, run_dir, log, wanted, chance, tally)
        tally.num_runs += 1
        found = found or compare(unbroken, run_dir)
        tally.faults += [f"{run_dir.name}: {fault}" for fault in found]
        print(f"{run_dir.name}: {tally.num_kills} kills so far, {'; '.join(found) or 'equal'}", flush=True)
        if not found:
            shutil.rmtree(run_dir)
    return tally


def _live_and_die(
    setting: Setting, run_dir: Path, log: Path, num_kills: int, chance: random.Random, tally: Tally
) -> list[str]:
    """Kill a run so many times, then let it come to its end; faults on the way."""
    done = 0
    process: subprocess.Popen[bytes] | None = None
    # An interrupted tool must not leave a run behind; its ranks end with their launcher.
    atexit.register(lambda: process and process.kill())
    while True:
        process = setting.start(run_dir, log)
        tally.num_lives += 1
        is_last = done == num_kills
        if not tally.deck:
            tally.deck = list(itertools.product(MOMENTS, VICTIMS))
            chance.shuffle(tally.deck)
        moment, victim = tally.deck.pop()
        if is_last or not _wait_for(moment, run_dir, process, chance):
            code = process.wait()
            # A life that reached its end before its moment came needs no other.
            return [] if code == 0 else [f"exit code {code} after {done} kills: see {log}"]
        family = _kill(process, victim, chance)
        tally.kills[f"{moment}, {victim}"] += 1
        done += 1
        left = _left_after(family, GONE_S)
        if left:
            for other in left:
                other.kill()
            return [
                f"processes {[other.pid for other in left]} outlived the kill ({moment}, {victim}): see {log}"
            ]


def _wait_for(moment: str, run_dir: Path, process: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Wait for the moment and a little longer; False when the process ended before."""
    checkpoints = run_dir / "checkpoints"
    known = {path.name for path in checkpoints.glob("*step_*")}
    num_logged = _num_lines(run_dir / "metrics.jsonl")
    has_come: Callable[[], bool]
    if moment == "start":
        has_come, longest_s = (lambda: True), 8.0
    elif moment == "step":
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
    time.sleep(chance.uniform(0, longest_s))
    return process.poll() is None


def _num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _kill(process: subprocess.Popen[bytes], victim: str, chance: random.Random) -> list[psutil.Process]:
    """SIGKILL to the victim; returns every process that must be gone soon."""
    launcher = psutil.Process(process.pid)
    family = launcher.children(recursive=True)
    ranks = [child for child in family if child.ppid() == process.pid] or [launcher]
    targets = {"rank": [chance.choice(ranks)], "launcher": [launcher], "everything": [launcher, *family]}[
        victim
    ]
    for target in targets:
        try:
            target.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    return family


def _left_after(family: Sequence[psutil.Process], longest_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + longest_s
    while True:
        left = [other for other in family if _lives(other)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def compare(unbroken: Path, broken: Path) -> list[str]:
    """What two finished runs differ in; empty when they are the same run."""
    found = []
    mine, theirs = _history(unbroken), _history(broken)
    if mine != theirs:
        at = next(
            (k for k, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), "the end"
        )
        found.append(f"metrics differ from record {at} on ({len(mine)} and {len(theirs)} records)")
    for path in sorted((unbroken / "hf").glob("*.safetensors")):
        if path.read_bytes() != (broken / "hf" / path.name).read_bytes():
            found.append(f"weights in {path.name} differ")
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (unbroken, broken)]
    if names[0] != names[1]:
        found.append(f"checkpoints {names[1]} instead of {names[0]}")
    for checkpoint in (broken / "checkpoints").glob("step_*"):
        found += [f"{checkpoint.name}: {fault}" for fault in faults(checkpoint, read_manifest(checkpoint))]
    return found


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
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; kept")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--most-kills-a-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unbroken", type=Path, help="run_dir of an unbroken run; made by default")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    setting = Setting(options.config, options.overrides, options.work)
    unbroken = options.unbroken or unbroken_run(setting)
    tally = torment(setting, unbroken, options.kills, options.most_kills_a_run, options.seed)
    print("\n".join(tally.lines()))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
