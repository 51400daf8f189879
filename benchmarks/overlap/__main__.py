"""Run the benchmark, part by part.

python -m benchmarks.overlap simulate: 70B on 128 GPUs, about a minute
python -m benchmarks.overlap measure: each schedule with a server on a core of its own, about 20 minutes
python -m benchmarks.overlap curves: on-policy against one step off on the quickstart task, about 20 minutes
python -m benchmarks.overlap report: the tables of what was measured
"""

import argparse
import dataclasses
from pathlib import Path

from benchmarks.overlap import curves, lengths, measure, report, seventy

RESULTS = Path(__file__).parents[1] / "results" / "overlap"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("simulate", help="simulate 70B parameters on 128 GPUs")
    measured = commands.add_parser("measure", help="run the schedules with an SGLang server")
    measured.add_argument("--rows", nargs="+", choices=tuple(measure.ROWS), default=list(measure.ROWS))
    measured.add_argument(
        "--python", type=Path, default=Path(".venv-sglang/bin/python"), help="of the engine"
    )
    measured.add_argument("--steps", type=int, default=10)
    measured.add_argument("--repeats", type=int, default=2, help="of all rows, in turn")
    drawn = commands.add_parser("curves", help="compare learning curves")
    drawn.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    commands.add_parser("report", help="print the tables of the records")
    for command in (measured, drawn):
        command.add_argument("--root", type=Path, default=Path("runs/overlap"), help="folder of all runs")
    for command in commands.choices.values():
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args()
    {"simulate": simulate, "measure": run_rows, "curves": run_curves, "report": print_report}[
        options.command
    ](options)


def simulate(_: argparse.Namespace) -> None:
    """Print the tables of the simulation."""
    published = lengths.Workload()
    for workload in (published, seventy.short(published)):
        drawn = [length for index in range(5000) for length in workload.draw(index, 0).lengths]
        at = lengths.quantiles(drawn, (0.5, 0.9, 0.99, 1.0))
        print(f"\nmean {sum(drawn) / len(drawn):,.0f} tokens; median, p90, p99, maximum {at}\n")
        print(seventy.table(seventy.rows(workload)), flush=True)


def run_rows(options: argparse.Namespace) -> None:
    """Carry out the rows in turn, and keep their figures."""
    root = options.root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    measure.fine_tuned(root)
    for _ in range(options.repeats):
        for name in options.rows:
            found = report.figures(measure.run(name, root, options.python, options.steps))
            measure.append(dataclasses.asdict(found), options.results / "measured.jsonl")
            print(report.table([found]), flush=True)


def run_curves(options: argparse.Namespace) -> None:
    """Carry out the runs of the learning curves that have no record yet."""
    root, path = options.root.absolute(), options.results / "curves.jsonl"
    for seed in options.seeds:
        for schedule in curves.SCHEDULES:
            if not curves.is_done(measure.read(path), schedule, seed):
                measure.append(curves.run(schedule, seed, root), path)


def print_report(options: argparse.Namespace) -> None:
    """Print the tables of the records."""
    by_row: dict[str, list[report.Figures]] = {}
    for record in measure.read(options.results / "measured.jsonl"):
        found = report.figures_of(record)
        by_row.setdefault(found.row, []).append(found)
    rows = [report.mean(by_row[name]) for name in measure.ROWS if name in by_row]
    if rows:
        print(report.table(rows), report.goals(rows), sep="\n\n")
    print(curves.table(measure.read(options.results / "curves.jsonl")))


if __name__ == "__main__":
    main()
