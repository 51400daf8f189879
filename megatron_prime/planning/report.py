"""A plan in words, as tables and as JSON."""

from typing import Any

from rich.table import Table

from megatron_prime.planning.counts import num_active_parameters, num_parameters, rank_parameters
from megatron_prime.planning.gpus import GB, GIB
from megatron_prime.planning.job import Job
from megatron_prime.planning.memory import MemoryPlan, kv_bytes_per_token
from megatron_prime.planning.search import Candidate, refusal
from megatron_prime.planning.times import TimePlan

PART_ORDER = ("weights", "gradients", "optimizer")


def as_json(job: Job, memory: MemoryPlan, times: TimePlan, best: list[Candidate]) -> dict[str, Any]:
    """Everything that the tables show."""
    layout = job.layout
    return {
        "gpu": job.gpu.name,
        "processes": job.num_processes,
        "layout": {axis: getattr(layout, axis) for axis in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")},
        "parameters": {
            role: {
                "total": num_parameters(shape),
                "active": num_active_parameters(shape),
                "rank": rank_parameters(shape, layout, memory.stage).total,
            }
            for role, shape in job.shapes.items()
        },
        "guess": vars(job.guess),
        "memory_gib": {
            phase: {name: size / GIB for name, size in parts.items()}
            for phase, parts in memory.phases.items()
        },
        "host_memory_gib": memory.host / GIB,
        "fits": memory.fits,
        "limit_gib": memory.limit / GIB,
        "kv_bytes_per_token": kv_bytes_per_token(job.shapes["policy"]),
        "bubble": times.bubble,
        "microbatches": {role: job.microbatches(role) for role in job.trained},
        "phases": {name: {"flops": p.flops, "seconds": p.seconds} for name, p in times.phases.items()},
        "seconds": times.seconds,
        "weight_sync_bytes": None if times.sync is None else times.sync.network_bytes,
        "recommended": [
            {"overrides": c.overrides(), "seconds": c.times.seconds, "peak_gib": c.memory.peak[1] / GIB}
            for c in best
        ],
    }


def summary_lines(job: Job, memory: MemoryPlan, times: TimePlan) -> list[str]:
    """The plan's head: sizes, work, and what was guessed."""
    layout, guess = job.layout, job.guess
    lines = [
        f"{role:<10} {num_parameters(shape):,} parameters ({num_active_parameters(shape):,} active), "
        f"{rank_parameters(shape, layout, memory.stage).total:,} on a rank of stage {memory.stage}"
        for role, shape in job.shapes.items()
    ]
    lines += [
        f"layout     {job.num_processes} x {job.gpu.name}: tensor {layout.tp}, pipeline {layout.pp} "
        f"({layout.vpp} chunks), context {layout.cp}, expert {layout.ep} x {layout.etp}, data {layout.dp}",
        f"step       {job.rollouts:,} responses, {job.tokens:,.0f} tokens if prompts have {guess.prompt_tokens:.0f} "
        f"and responses {guess.response_tokens:.0f} on average",
        f"policy     {job.microbatches('policy')} microbatches a minibatch and data rank; pipeline bubble "
        f"{times.bubble:.1%}",
        f"KV cache   {kv_bytes_per_token(job.shapes['policy']) / 1024:.0f} KiB a token",
    ]
    if times.sync is not None:
        lines.append(
            f"sync       {times.sync.network_bytes / GB:,.1f} GB over the network ({times.sync.nic_bytes / GB:,.1f} GB "
            f"between nodes), {times.sync.local_bytes / GB:,.1f} GB on the spot"
        )
    if memory.host:
        lines.append(f"host       {memory.host / GIB:.1f} GiB of host memory a rank behind what is offloaded")
    return lines


def verdict(job: Job, memory: MemoryPlan) -> str:
    """One line: it fits, or why not."""
    if not memory.fits:
        return refusal(job, memory)
    phase, size = memory.peak
    return (
        f"fits: {size / GIB:.1f} of {memory.limit / GIB:.1f} GiB in the fullest phase ({phase}), "
        f"{(memory.limit - size) / GIB:.1f} GiB to spare"
    )


def memory_table(memory: MemoryPlan) -> Table:
    """Parts down, phases across, GiB."""
    table = Table("GiB", *memory.phases, title=f"memory of a rank of pipeline stage {memory.stage}")
    names = dict.fromkeys(name for parts in memory.phases.values() for name in parts)
    for name in sorted(names, key=_part_key):
        cells = [_gib(parts.get(name)) for parts in memory.phases.values()]
        table.add_row(name, *cells)
    table.add_row("total", *(_gib(memory.total(phase)) for phase in memory.phases), style="bold")
    return table


def _part_key(name: str) -> tuple[bool, str, int]:
    role, _, part = name.partition(" ")
    if part not in PART_ORDER or role == "engine":
        return True, "", 0
    return False, role, PART_ORDER.index(part)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def time_table(times: TimePlan) -> Table:
    """Phases down."""
    table = Table("phase", "PFLOP", "seconds", "share", title="estimated time of a step")
    for name, phase in times.phases.items():
        table.add_row(
            name,
            f"{phase.flops / 1e15:,.1f}",
            f"{phase.seconds:,.1f}",
            f"{phase.seconds / times.seconds:.0%}",
        )
    table.add_row("step", "", f"{times.seconds:,.1f}", "", style="bold")
    return table


def layouts_table(best: list[Candidate]) -> Table:
    """The recommended layouts, fastest first."""
    table = Table(
        "seconds", "peak GiB", "overrides", title="layouts that fit, fastest first (weight sync left out)"
    )
    for candidate in best:
        table.add_row(
            f"{candidate.times.seconds:,.1f}",
            f"{candidate.memory.peak[1] / GIB:.1f}",
            " ".join(candidate.overrides()),
        )
    return table
