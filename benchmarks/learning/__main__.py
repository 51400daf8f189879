"""Run the benchmark, or write its page.

    python -m benchmarks.learning run --task marks --methods rloo hindsight --seeds 11-18 [--root runs/learning]
    python -m benchmarks.learning run --task marks --methods hindsight --seeds 1-2 --try policy.lr=6e-4
    python -m benchmarks.learning queue FILE       # lines of the arguments of `run`, read again after each run
    python -m benchmarks.learning page             # docs/learning.md and its plots, from the records

Runs whose record exists are not repeated, so that all commands can be started again. Settings are tried on the seeds
for tuning alone.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.learning import records
from benchmarks.learning.methods import HELD_OUT_SEEDS, METHODS
from benchmarks.learning.runs import Job, locked, train
from benchmarks.learning.tasks import TASKS


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="carry out runs, seed by seed")
    _add_jobs(run)
    queue = commands.add_parser("queue", help="carry out the runs of a file, in its order")
    queue.add_argument("file", type=Path, help="lines of the arguments of run; # begins a comment")
    for command in (run, queue):
        command.add_argument("--root", type=Path, default=Path("runs/learning"), help="folder of all runs")
        command.add_argument("--results", type=Path, default=records.RESULTS, help="folder of the records")
        command.add_argument("--keep", action="store_true", help="keep the folders of finished runs")
    commands.add_parser("page", help="write docs/learning.md and its plots from the records")
    options = parser.parse_args()
    if options.command == "page":
        from benchmarks.learning.page import write_page

        write_page()
        return
    options.root.mkdir(parents=True, exist_ok=True)
    while (job := _next(_jobs(options), options)) is not None:
        _carry_out(job, options)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=tuple(TASKS), required=True)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), required=True)
    parser.add_argument("--seeds", nargs="+", type=_seeds, required=True, help="such as 1 2 or 11-18")
    parser.add_argument("--try", dest="tried", nargs="+", default=[], metavar="KEY=VALUE")


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield all runs that are asked for."""
    if options.command == "run":
        yield from _of_line(options)
        return
    parser = argparse.ArgumentParser(prog=str(options.file))
    _add_jobs(parser)
    for line in options.file.read_text(encoding="utf-8").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield from _of_line(parser.parse_args(words))


def _of_line(line: argparse.Namespace) -> Iterator[Job]:
    for seed in (seed for seeds in line.seeds for seed in seeds):
        if line.tried and seed in HELD_OUT_SEEDS:
            raise SystemExit(f"seed {seed} is held out: nothing is tried on it")
        for method in line.methods:
            yield Job(line.task, method, seed, tuple(line.tried))


def _next(jobs: Iterator[Job], options: argparse.Namespace) -> Job | None:
    """Return the first run without a record that no other process carries out, and claim it."""
    done = records.read(options.results)
    with locked(options.root / "claims.lock"):
        for job in jobs:
            if not records.is_done(job, done) and not job.folder(options.root).exists():
                job.folder(options.root).mkdir(parents=True)
                return job
    return None


def _carry_out(job: Job, options: argparse.Namespace) -> None:
    folder = job.folder(options.root)
    usage = train(job, options.root)
    if usage.exit_code:
        print(f"{job.name}: exit code {usage.exit_code}, see {folder / 'output.log'}", file=sys.stderr)
        return
    record = records.record_of(job, folder, usage)
    records.append(record, options.results)
    curve = " ".join(f"{each:.2f}" for each in record.smooth()[::4])
    print(f"{job.name}: {curve} | final {record.final:.3f}, {record.seconds[-1]:.0f} s", flush=True)
    if not options.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
