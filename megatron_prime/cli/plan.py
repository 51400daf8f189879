"""`megatron-prime plan`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.progress import Progress
from megatron_prime.planning.gpus import gpu_of
from megatron_prime.planning.job import Guess, Job, job_of
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.report import (
    as_json,
    layouts_table,
    memory_table,
    summary_lines,
    time_table,
    verdict,
)
from megatron_prime.planning.search import best_layouts, fewest_processes
from megatron_prime.planning.times import plan_times

DOES_NOT_FIT = 3


def plan(config: PrimeConfig, options: argparse.Namespace) -> int:
    """Print the plan and the layouts that are recommended; the exit code is 3 when the configuration does not fit.

    Raises ValueError for a model, a GPU or a layout that is not possible.
    """
    job = _job(config, options)
    memory, times = plan_memory(job), plan_times(job)
    best = best_layouts(job)
    progress = Progress()
    for line in summary_lines(job, memory, times):
        progress.line(line)
    for table in (memory_table(memory), time_table(times)):
        progress.table(table)
    progress.line(verdict(job, memory))
    if best:
        progress.table(layouts_table(best))
    else:
        number = fewest_processes(job)
        progress.line(
            f"no layout fits on {job.num_processes} x {job.gpu.name}"
            + (f"; {number} are enough" if number else ", nor on any number of them")
        )
    if options.json:
        replace_file(Path(options.json), json.dumps(as_json(job, memory, times, best), indent=1) + "\n")
    return 0 if memory.fits else DOES_NOT_FIT


def _job(config: PrimeConfig, options: argparse.Namespace) -> Job:
    changes = {}
    for text in options.gpu_set:
        key, equals, value = text.partition("=")
        try:
            changes[key] = float(value)
        except ValueError:
            raise ValueError(f"--gpu-set {text}: give it as FIGURE=NUMBER") from None
        assert equals
    number = options.gpus or config.parallel.num_processes or config.parallel.min_processes
    job = job_of(config, number, gpu_of(options.gpu, changes))
    given = {
        name: getattr(options, name)
        for name in Guess.__dataclass_fields__
        if getattr(options, name, None) is not None
    }
    return replace(job, guess=replace(job.guess, **given))
