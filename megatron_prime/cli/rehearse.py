"""The command `megatron-prime rehearse`: runs chosen ranks of a job without its GPUs, and reports what they do."""

import json
import os
from pathlib import Path

from megatron_prime.cli.arguments import Options
from megatron_prime.cli.plan import DOES_NOT_FIT, planned_run
from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.progress import Progress
from megatron_prime.rehearsal.processes import chosen_ranks, rehearse
from megatron_prime.rehearsal.rank import rehearsable
from megatron_prime.rehearsal.report import (
    as_json,
    collectives_table,
    faults,
    memory_table,
    misfits,
    waits_table,
    work_table,
)

HAS_FAULTS = 1
"""Exit code of a rehearsal that found an error."""


def rehearse_run(config: PrimeConfig, options: Options) -> int:
    """Rehearse the ranks, and print tables and faults.

    Returns:
        The exit code: 0, HAS_FAULTS, or DOES_NOT_FIT if a phase needs more memory than a GPU has.

    Raises:
        ValueError: a model is not supported, the layout is not possible, or a rank does not exist.
    """
    run = planned_run(config, options)
    ranks = chosen_ranks(options.ranks, run.layout)
    progress = Progress()
    _, notes = rehearsable(config)
    lengths = run.assumptions
    progress.line(
        f"rehearsing {len(ranks)} of {run.num_processes} ranks: {', '.join(map(str, ranks))}; {run.rollouts:,} "
        f"responses a step, lengths evenly spread around {lengths.prompt_tokens:.0f} + "
        f"{lengths.response_tokens:.0f} tokens"
    )
    for note in notes:
        progress.line(f"note: {note}")
    reports = rehearse(run, ranks, options.steps, options.jobs or min(len(ranks), os.cpu_count() or 1))
    for report in reports:
        if report.memory:
            progress.table(memory_table(run, report))
    for report in reports[:1]:
        progress.table(work_table(report))
        progress.table(collectives_table(report))
    progress.table(waits_table(reports))
    wrong, large = faults(run, reports), misfits(run, reports)
    for line in (*wrong, *large):
        progress.line(line)
    if options.json:
        replace_file(Path(options.json), json.dumps(as_json(run, reports), indent=1) + "\n")
    if not wrong and not large:
        progress.line(f"no fault in {len(ranks)} ranks")
    return HAS_FAULTS if wrong else DOES_NOT_FIT if large else 0
