"""The command `megatron-prime plan`: prints the memory and time of a run and recommends layouts."""

import json
from dataclasses import replace
from pathlib import Path

from megatron_prime.cli.arguments import Options
from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.progress import Progress
from megatron_prime.planning.gpus import gpu_of
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.planned_run import Assumptions, PlannedRun, read_planned_run
from megatron_prime.planning.report import (
    as_json,
    fit_summary,
    layouts_table,
    memory_table,
    splits_table,
    summary_lines,
    time_table,
)
from megatron_prime.planning.search import best_layouts, find_num_processes
from megatron_prime.planning.splits import best_splits
from megatron_prime.planning.times import plan_times

DOES_NOT_FIT = 3
"""Exit code of a plan that does not fit."""


def plan(config: PrimeConfig, options: Options) -> int:
    """Print the plan and the recommended layouts.

    Returns:
        The exit code: 0, or DOES_NOT_FIT if the configuration does not fit.

    Raises:
        ValueError: If a model is not supported, a GPU is unknown, or the layout is not possible.
    """
    run = planned_run(config, options)
    memory, times = plan_memory(run), plan_times(run)
    progress = Progress()
    best = best_layouts(run, progress=progress)
    splits = best_splits(run, progress=progress)
    for line in summary_lines(run, memory, times):
        progress.line(line)
    for table in (memory_table(memory), time_table(times)):
        progress.table(table)
    progress.line(fit_summary(run, memory))
    if best:
        progress.table(layouts_table(best))
    elif not memory.server_fault:
        # Servers that cannot hold the model do not fit beside any layout of the training ranks.
        number = find_num_processes(run)
        progress.line(
            f"no layout fits on {run.num_processes} x {run.gpu.name}"
            + (f"; {number} GPUs are enough" if number else ", nor on any larger number of them")
        )
    if splits:
        progress.table(splits_table(splits))
    if options.json:
        everything = as_json(run, memory, times, best, splits)
        replace_file(Path(options.json), json.dumps(everything, indent=1) + "\n")
    return 0 if memory.fits else DOES_NOT_FIT


def planned_run(config: PrimeConfig, options: Options) -> PlannedRun:
    """Return the run that the options --gpu, --gpus, --gpu-set and those of assumptions describe.

    Raises:
        ValueError: a model is not supported, or a GPU or one of its properties is unknown.
    """
    changes = {}
    for text in options.gpu_set:
        key, equals, value = text.partition("=")
        try:
            changes[key] = float(value)
        except ValueError:
            raise ValueError(f"--gpu-set {text}: the form is FIGURE=NUMBER") from None
        assert equals
    number = options.gpus or config.parallel.num_processes or config.parallel.min_processes
    run = read_planned_run(config, number, gpu_of(options.gpu, changes))
    given = {
        name: getattr(options, name)
        for name in Assumptions.__dataclass_fields__
        if getattr(options, name, None) is not None
    }
    return replace(run, assumptions=replace(run.assumptions, **given))
