"""Run the benchmark, part by part.

python -m benchmarks.overlap simulate            # 70B on 128 GPUs, two tables; about two minutes
"""

import argparse

from benchmarks.overlap import lengths, seventy


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("simulate", help="simulate 70B parameters on 128 GPUs")
    parser.parse_args()
    print_simulation()


def print_simulation() -> None:
    """Print the tables of the simulation."""
    published = lengths.Workload()
    for workload in (published, seventy.short(published)):
        drawn = [length for index in range(5000) for length in workload.draw(index, 0).lengths]
        at = lengths.quantiles(drawn, (0.5, 0.9, 0.99, 1.0))
        print(f"\nmean {sum(drawn) / len(drawn):,.0f} tokens; median, p90, p99, maximum {at}\n")
        print(seventy.table(seventy.rows(workload)), flush=True)


if __name__ == "__main__":
    main()
