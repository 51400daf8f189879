"""Print how often the prompts of a run were sampled and solved, and which are always solved or never.

    python tools/prompt_stats.py runs/first
    python tools/prompt_stats.py runs/first --output prompts.csv

    python tools/prompt_stats.py runs/sampled/rollouts

Reads run_dir/prompts.jsonl, also while the job is running. Without that file, as after `megatron-prime rollout`, it
reads the rollout log, which may hold a part of the groups. The prompt index is the row in the data set, counted from 0
over all its files.
"""

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_prime.observability.rollout_log import RolloutFile, log_folder, logged_steps
from megatron_prime.rollout.prompt_history import PromptStats, read_prompt_stats

NUM_BINS = 5
NUM_SHOWN = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="folder of a run, or of a rollout log")
    parser.add_argument("--output", type=Path, help="csv file to write, with one line per prompt")
    options = parser.parse_args(arguments)
    path, logged = options.run_dir / "prompts.jsonl", logged_steps(log_folder(options.run_dir))
    if not path.is_file() and not logged:
        print(
            f"prompt_stats: {path} does not exist, nor a rollout log: is {options.run_dir} a run_dir?",
            file=sys.stderr,
        )
        return 1
    prompts = read_prompt_stats(path) if path.is_file() else logged_prompt_stats(logged)
    console = Console()
    console.print(accuracy_table(prompts))
    stuck = sorted(
        (index for index, stats in prompts.items() if stats.num_verified > 1 and stats.sum_accuracy == 0),
        key=lambda index: -prompts[index].num_sampled,
    )
    if stuck:
        shown = ", ".join(f"{index} ({prompts[index].num_sampled} times)" for index in stuck[:NUM_SHOWN])
        console.print(f"{len(stuck)} prompts sampled more than once were never solved: {shown}")
    if options.output is not None:
        write_csv(options.output, prompts)
        console.print(f"written to {options.output}")
    return 0


def logged_prompt_stats(files: Mapping[int, Path]) -> dict[int, PromptStats]:
    """Return the statistics of each prompt, by index, from the files of the logged steps."""
    prompts: dict[int, PromptStats] = {}
    for step, path in files.items():
        with RolloutFile(path) as file:
            rows = file.rows(("group", "prompt_index", "outcome_reward"))
            for (_, index), group in itertools.groupby(rows, lambda row: (row["group"], row["prompt_index"])):
                outcomes = [row["outcome_reward"] for row in group]
                mean = math.nan if None in outcomes else math.fsum(outcomes) / len(outcomes)
                prompts.setdefault(index, PromptStats()).add(step, mean)
    return prompts


def accuracy_table(prompts: dict[int, PromptStats]) -> Table:
    """Return a histogram of the prompts by mean accuracy."""
    table = Table("mean accuracy", "prompts", "share", "times sampled, mean")
    verified = [stats for stats in prompts.values() if stats.num_verified]
    rows = [
        ("0", [stats for stats in verified if stats.mean_accuracy == 0]),
        *(
            (
                f"to {(index + 1) / NUM_BINS:.1f}",
                [
                    stats
                    for stats in verified
                    if 0 < stats.mean_accuracy < 1 and int(stats.mean_accuracy * NUM_BINS) == index
                ],
            )
            for index in range(NUM_BINS)
        ),
        ("1", [stats for stats in verified if stats.mean_accuracy == 1]),
        ("verifier errors only", [stats for stats in prompts.values() if not stats.num_verified]),
    ]
    for name, members in rows:
        times = sum(stats.num_sampled for stats in members) / len(members) if members else 0.0
        share = len(members) / len(prompts) if prompts else 0.0
        table.add_row(name, str(len(members)), f"{share:.1%}", f"{times:.2f}")
    return table


def write_csv(path: Path, prompts: dict[int, PromptStats]) -> None:
    """Write one line per prompt, ordered by index."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "num_sampled", "mean_accuracy", "last_step"])
        for index, stats in sorted(prompts.items()):
            mean = stats.mean_accuracy if stats.num_verified else ""
            writer.writerow([index, stats.num_sampled, mean, stats.last_step])


if __name__ == "__main__":
    sys.exit(main())
