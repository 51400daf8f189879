"""The ranks that are rehearsed, each in a process of its own, since a process can be one rank only."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.rehearsal.rank import RankReport, rehearse_rank
from megatron_prime.resharding.layouts import TrainingLayout

STAGES = "stages"


def chosen_ranks(text: str, layout: TrainingLayout) -> list[int]:
    """Return the ranks that the text names, ascending.

    `stages` names one rank of each pipeline stage, and on the first and last stages the next tensor-, context- and
    data-parallel rank, so that each kind of group has two ranks to compare. Otherwise it is a list like "0,127".

    Raises:
        ValueError: it is neither, or names a rank that the job does not have.
    """
    num_ranks = layout.num_ranks
    if text != STAGES:
        try:
            ranks = sorted({int(part) for part in text.split(",")})
        except ValueError:
            raise ValueError(f"--ranks {text}: give numbers such as 0,127, or {STAGES}") from None
        if not 0 <= ranks[0] <= ranks[-1] < num_ranks:
            raise ValueError(f"--ranks {text}: the job has the ranks 0 to {num_ranks - 1}")
        return ranks
    firsts = [stage * layout.ranks_per_stage for stage in range(layout.pp)]
    strides = [
        stride
        for stride, size in ((1, layout.tp), (layout.tp, layout.cp), (layout.tp * layout.cp, layout.dp))
        if size > 1
    ]
    return sorted({*firsts, *(first + stride for first in (firsts[0], firsts[-1]) for stride in strides)})


def rehearse(run: PlannedRun, ranks: Sequence[int], num_steps: int = 1, jobs: int = 1) -> list[RankReport]:
    """Rehearse ranks, `jobs` at a time, and return their reports in the order of `ranks`."""
    # Forks of a server that has done nothing but import: this process may be a rank of a job itself, or have threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    waiting, running = list(ranks), dict[Connection, int]()
    reports: dict[int, RankReport] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            receiver, sender = context.Pipe(duplex=False)
            rank = waiting.pop(0)
            context.Process(target=_child, args=(run, rank, num_steps, sender), daemon=True).start()
            sender.close()
            running[receiver] = rank
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            rank = running.pop(ready)
            try:
                reports[rank] = ready.recv()
            except EOFError:
                reports[rank] = RankReport(rank, {}, error=f"rank {rank}: its process was killed")
            ready.close()
    return [reports[rank] for rank in ranks]


def _child(run: PlannedRun, rank: int, num_steps: int, sender: Connection) -> None:
    sender.send(rehearse_rank(run, rank, num_steps))
    sender.close()
