"""The result of a rehearsal as tables and as JSON, and what is wrong with the run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import MemoryPlan, plan_stage
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.rehearsal.comparison import differences
from megatron_prime.rehearsal.rank import RankReport

KINDS = ("weights", "gradients", "optimizer", "activations", "other")
BESIDE = ("engine", "sync", "overhead")
"""First words of the parts of a plan that the trainer's process does not allocate through torch."""
PHASES = ("start", "build", "weight_sync", "rollout", "step", "logprobs", "prm", "advantage", "policy")
"""Phases in the order of a step."""
MOST_PLACES = 12
"""Number of places of waits that the tables show; JSON has all."""


def faults(run: PlannedRun, reports: Sequence[RankReport]) -> list[str]:
    """Return a line for each fault: errors, device faults, differing collectives."""
    found = [report.error for report in reports if report.error]
    for report in reports:
        for phase, counts in report.counts.items():
            found += [
                f"rank {report.rank}, phase {phase}: {fault} ({number} times)"
                for fault, number in counts.faults.items()
            ]
    return found + differences(reports)


def misfits(run: PlannedRun, reports: Sequence[RankReport]) -> list[str]:
    """Return a line for each rank's phase that needs more memory than the GPU has; on CPUs there is no limit."""
    if run.config.platform.device == "cpu":
        return []
    limit, lines = run.gpu.memory_gib * GIB, []
    for report in reports:
        plan = _plan(run, report)
        for phase, memory in report.memory.items():
            total = memory.peak + _beside(plan, phase)
            if total > limit:
                lines.append(
                    f"rank {report.rank}, phase {phase}: {total / GIB:.1f} GiB of the {limit / GIB:.1f} GiB of a "
                    f"{run.gpu.name}, of which {_beside(plan, phase) / GIB:.1f} GiB are the engine's and overhead"
                )
    return lines


def memory_table(run: PlannedRun, report: RankReport) -> Table:
    """Return a table of GiB with a row per phase: what is alive at its peak, and what `plan` says."""
    where = ", ".join(f"{axis} {index}" for axis, index in report.where.items())
    table = Table(
        "GiB at the peak",
        *KINDS,
        "trainer",
        "plan",
        "engine etc.",
        "total",
        "largest allocation",
        title=f"rank {report.rank} ({where})",
    )
    plan = _plan(run, report)
    for phase in _ordered(report.memory):
        memory = report.memory[phase]
        by_kind: Counter[str] = Counter()
        for owner, size in memory.at_peak.items():
            by_kind[owner.kind] += size
        planned = planned_bytes(plan, phase)
        table.add_row(
            phase,
            *(_gib(by_kind[kind]) for kind in KINDS),
            _gib(memory.peak),
            "" if planned is None else _gib(planned),
            _gib(_beside(plan, phase)),
            _gib(memory.peak + _beside(plan, phase)),
            f"{memory.largest / GIB:.2f} {memory.largest_place}",
        )
    return table


def work_table(report: RankReport) -> Table:
    """Return a table with a row per phase: operations, FLOPs, waits of the host."""
    table = Table(
        "phase", "operations", "TFLOP", "host waits", "assumed", title=f"work of rank {report.rank}"
    )
    for phase in _ordered(report.counts):
        counts = report.counts[phase]
        table.add_row(
            phase,
            f"{counts.kernels:,}",
            f"{counts.flops / 1e12:,.1f}",
            f"{counts.waits.total():,}",
            f"{counts.assumed.total():,}",
        )
    return table


def waits_table(reports: Sequence[RankReport]) -> Table:
    """Return a table of the places where the host waits for the device most often, over all ranks."""
    places: Counter[str] = Counter()
    for report in reports:
        for counts in report.counts.values():
            places.update(counts.waits)
    table = Table("times", "where the host waits for the device", title="host waits, most frequent first")
    for place, number in places.most_common(MOST_PLACES):
        table.add_row(f"{number:,}", place)
    return table


def collectives_table(report: RankReport) -> Table:
    """Return a table with a row per group and kind of collective."""
    table = Table("group", "ranks", "call", "times", "GiB", title=f"collectives of rank {report.rank}")
    for group, calls in report.collectives.groups.items():
        for kind, (number, size) in calls.counts().items():
            table.add_row(group.name, str(len(group.ranks)), kind, f"{number:,}", f"{size / GIB:,.3f}")
    return table


def as_json(run: PlannedRun, reports: Sequence[RankReport]) -> dict[str, Any]:
    """Return everything as JSON values; sequences of collectives have [kind, bytes, peer, repetitions] per entry."""
    return {
        "processes": run.num_processes,
        "assumptions": vars(run.assumptions),
        "faults": faults(run, reports),
        "misfits": misfits(run, reports),
        "ranks": [_rank_as_json(run, report) for report in reports],
    }


def _rank_as_json(run: PlannedRun, report: RankReport) -> dict[str, Any]:
    plan = _plan(run, report)
    return {
        "rank": report.rank,
        "where": report.where,
        "error": report.error,
        "seconds": report.seconds,
        "host_bytes": report.host_bytes,
        "sync": report.sync,
        "phases": {
            phase: {
                "peak_bytes": memory.peak,
                "bytes_at_peak": {str(owner): size for owner, size in memory.at_peak.items()},
                "planned_bytes": planned_bytes(plan, phase),
                "largest_bytes": memory.largest,
                "largest_place": memory.largest_place,
            }
            for phase, memory in report.memory.items()
        },
        "work": {
            phase: {
                "operations": counts.kernels,
                "flops": counts.flops,
                "waits": dict(counts.waits.most_common()),
                "assumed": dict(counts.assumed.most_common()),
                "faults": dict(counts.faults),
            }
            for phase, counts in report.counts.items()
        },
        "collectives": [
            {
                "group": group.name,
                "ranks": list(group.ranks),
                "counts": {kind: list(both) for kind, both in calls.counts().items()},
                "sequence": [[*call, times] for call, times in calls.runs()],
            }
            for group, calls in report.collectives.groups.items()
        ],
    }


def planned_bytes(plan: MemoryPlan, phase: str) -> int | None:
    """Return what a plan says of the trainer's own memory in a phase; None for a phase that it leaves out."""
    parts = plan.phases.get(phase)
    if parts is None:
        return None
    return sum(size for name, size in parts.items() if not name.startswith(BESIDE))


def _beside(plan: MemoryPlan, phase: str) -> int:
    if phase == "start":
        return 0
    # A phase that the plan leaves out has the engine of the phases around it, which has released its memory.
    parts = plan.phases.get(phase, plan.phases["logprobs"])
    return sum(size for name, size in parts.items() if name.startswith(BESIDE))


def _plan(run: PlannedRun, report: RankReport) -> MemoryPlan:
    return plan_stage(run, report.rank // run.layout.ranks_per_stage)


def _ordered(phases: dict[str, Any]) -> list[str]:
    return sorted(phases, key=lambda phase: (PHASES.index(phase) if phase in PHASES else len(PHASES), phase))


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else ""
