"""A plan as text, as tables and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from megatron_prime.hf.serving import kv_bytes_per_token, num_parameters
from megatron_prime.planning.counts import num_active_parameters, rank_parameters
from megatron_prime.planning.gpus import GB, GIB
from megatron_prime.planning.memory import MemoryPlan
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.planning.search import Candidate, misfit_message
from megatron_prime.planning.splits import Split
from megatron_prime.planning.times import TimePlan

PART_ORDER = ("weights", "gradients", "optimizer")


def as_json(
    run: PlannedRun, memory: MemoryPlan, times: TimePlan, best: list[Candidate], splits: Sequence[Split]
) -> dict[str, Any]:
    """Return everything that the tables show as JSON values."""
    layout = run.layout
    return {
        "gpu": run.gpu.name,
        "processes": run.num_processes,
        "layout": {axis: getattr(layout, axis) for axis in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")},
        "layers": _layers_by_stage(run),
        "parameters": {
            role: {
                "total": num_parameters(shape),
                "active": num_active_parameters(shape),
                "rank": rank_parameters(shape, layout, memory.stage).total,
            }
            for role, shape in run.shapes.items()
        },
        "assumptions": vars(run.assumptions),
        "memory_gib": {
            phase: {name: size / GIB for name, size in parts.items()}
            for phase, parts in memory.phases.items()
        },
        "host_memory_gib": memory.host / GIB,
        "host_sent_weights_gib": memory.host_sent / GIB,
        "host_memory_node_gib": memory.host_node / GIB,
        "fits": memory.fits,
        "limit_gib": memory.limit / GIB,
        "kv_bytes_per_token": kv_bytes_per_token(run.shapes["policy"]),
        "bubble": times.bubble,
        "microbatches": {role: run.microbatches(role) for role in run.trained},
        "phases": {name: {"flops": p.flops, "seconds": p.seconds} for name, p in times.phases.items()},
        "seconds": times.seconds,
        "seconds_in_turn": times.in_turn_seconds,
        "seconds_overlapped": None if run.is_colocated else times.overlapped_seconds,
        "weight_sync_bytes": None if times.sync is None else times.sync.network_bytes,
        "recommended": [
            {"overrides": c.overrides(), "seconds": c.times.seconds, "peak_gib": c.memory.peak[1] / GIB}
            for c in best
        ],
        "splits": [
            {
                "num_processes": split.candidate.run.num_processes,
                "num_servers": split.candidate.run.num_servers,
                "max_staleness": split.candidate.run.config.rollout.max_staleness,
                "overrides": split.candidate.overrides(),
                "seconds": split.candidate.times.seconds,
                "sampling_seconds": split.candidate.times.sampling_seconds,
                "training_seconds": split.candidate.times.training_seconds,
            }
            for split in splits
        ],
    }


def summary_lines(run: PlannedRun, memory: MemoryPlan, times: TimePlan) -> list[str]:
    """Return the head of a plan: sizes, work, and assumptions."""
    layout, assumptions = run.layout, run.assumptions
    lines = [
        f"{role:<10} {num_parameters(shape):,} parameters ({num_active_parameters(shape):,} active), "
        f"{rank_parameters(shape, layout, memory.stage).total:,} per rank of stage {memory.stage}"
        for role, shape in run.shapes.items()
    ]
    lines += [
        f"layout     {run.num_processes} x {run.gpu.name}: tensor {layout.tp}, pipeline {layout.pp} "
        f"({layout.vpp} chunks), context {layout.cp}, expert {layout.ep} x {layout.etp}, data {layout.dp}",
        f"step       {run.rollouts:,} responses, {run.tokens:,.0f} tokens assuming a mean of "
        f"{assumptions.prompt_tokens:.0f} per prompt and {assumptions.response_tokens:.0f} per response",
        f"policy     {run.microbatches('policy')} microbatches per minibatch and data rank; pipeline bubble "
        f"{times.bubble:.1%}",
        f"KV cache   {kv_bytes_per_token(run.shapes['policy']) / 1024:.0f} KiB per token",
    ]
    if layout.pp > 1:
        lines.append(f"stages     {' + '.join(map(str, _layers_by_stage(run)))} layers")
    if run.config.rollout.uses_servers:
        lines.append(_modes(run, times))
    if times.sync is not None:
        lines.append(
            f"sync       {times.sync.network_bytes / GB:,.1f} GB over the network ({times.sync.nic_bytes / GB:,.1f} GB "
            f"between nodes), {times.sync.local_bytes / GB:,.1f} GB within a GPU"
        )
    lines.append(
        f"host       {memory.host_node / GIB:,.0f} GiB of host memory on the fullest node: {memory.host / GIB:.1f} GiB "
        f"per rank for offloaded parts, {memory.host_sent / GIB:.1f} GiB per rank for the weights that were sent to "
        f"servers last, and {memory.host_checkpoint / GIB:,.0f} GiB while a checkpoint is written"
    )
    return lines


def _layers_by_stage(run: PlannedRun) -> list[int]:
    """Return the number of the policy's layers on each pipeline stage."""
    return [sum(map(len, chunks)) for chunks in run.layout.stage_layers(run.shapes["policy"])]


def _modes(run: PlannedRun, times: TimePlan) -> str:
    """Return one line about sampling and training in turn and at the same time."""
    in_turn = f"in turn {times.in_turn_seconds:,.1f} s"
    if run.is_colocated:
        return f"step time  {in_turn}; at the same time needs servers with GPUs of their own"
    rollout = run.config.rollout
    how = f"rollout.max_staleness = {max(1, rollout.max_staleness)}"
    if rollout.max_staleness > 1:
        how += f", partial = {rollout.partial!r}"
    longer = "sampling" if times.sampling_seconds > times.training_seconds else "training"
    return (
        f"step time  {in_turn}, at the same time ({how}) {times.overlapped_seconds:,.1f} s: "
        f"sampling takes {times.sampling_seconds:,.1f} s and training {times.training_seconds:,.1f} s, so the step "
        f"waits for {longer}"
    )


def fit_summary(run: PlannedRun, memory: MemoryPlan) -> str:
    """Return one line that says by how much the run fits, or why it does not."""
    if not memory.fits:
        return misfit_message(run, memory)
    phase, size = memory.peak
    return (
        f"fits: {size / GIB:.1f} of {memory.limit / GIB:.1f} GiB in the fullest phase ({phase}), "
        f"{(memory.limit - size) / GIB:.1f} GiB to spare"
    )


def memory_table(memory: MemoryPlan) -> Table:
    """Return a table of GiB with a row per part and a column per phase."""
    table = Table("GiB", *memory.phases, title=f"memory per rank of pipeline stage {memory.stage}")
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
    """Return a table of FLOPs and seconds with a row per phase."""
    table = Table("phase", "PFLOP", "seconds", "share", title="estimated time per step")
    for name, phase in times.phases.items():
        table.add_row(
            name,
            f"{phase.flops / 1e15:,.1f}",
            f"{phase.seconds:,.1f}",
            f"{phase.seconds / times.in_turn_seconds:.0%}",
        )
    name = "step, overlapped" if times.samples_ahead else "step"
    table.add_row(name, "", f"{times.seconds:,.1f}", "", style="bold")
    return table


def layouts_table(best: list[Candidate]) -> Table:
    """Return a table of the recommended layouts, fastest first."""
    table = Table("seconds", "peak GiB", "overrides", title="layouts that fit, fastest first")
    for candidate in best:
        table.add_row(
            f"{candidate.times.seconds:,.1f}",
            f"{candidate.memory.peak[1] / GIB:.1f}",
            " ".join(candidate.overrides()),
        )
    return table


def splits_table(splits: Sequence[Split]) -> Table:
    """Return a table of ways to give the GPUs to servers and training, fastest first."""
    table = Table(
        *("seconds", "sampling", "training", "servers", "layout of training"),
        title=f"splits of {splits[0].num_gpus} GPUs that fit, fastest first",
    )
    for split in splits:
        times, run = split.candidate.times, split.candidate.run
        where = (
            "on the training GPUs, in turn" if run.is_colocated else "on GPUs of their own, at the same time"
        )
        table.add_row(
            f"{times.seconds:,.1f}",
            f"{times.sampling_seconds:,.1f}",
            f"{times.training_seconds:,.1f}",
            f"{run.num_servers} of {run.config.rollout.sglang.tensor} GPUs {where}",
            " ".join(split.candidate.overrides()),
        )
    return table
