"""Exhaustive search for the fastest layout that fits."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.section import Section
from megatron_prime.config.tables.performance.memory import MemoryConfig, RecomputeConfig
from megatron_prime.hf.training_limits import ModelSplit, check_training, recompute_faults
from megatron_prime.observability.progress import SILENT, Progress
from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import MemoryPlan, plan_stages
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.planning.times import TimePlan, plan_times

MAX_PROCESSES = 8192
"""Largest number of processes that is tried."""
GRANULARITIES = ("none", "selective", "full")
_NEARLY = 1.2
"""Up to this multiple of the memory, a stage's layers are moved to others to make it fit."""
LONG_SEQUENCE = 16384
"""Sequence length in tokens from which on context parallelism is tried."""


@dataclass(frozen=True)
class Candidate:
    """A run in one layout, with its memory and time."""

    run: PlannedRun
    memory: MemoryPlan
    times: TimePlan

    configured: PrimeConfig
    """The configuration that the search began with."""

    def overrides(self) -> list[str]:
        """Return command-line overrides that turn the configuration into this candidate.

        They name what differs from it, and the parallel sizes above 1 for the reader.
        """
        parallel = self.run.config.parallel.model_copy(update={"num_processes": self.run.num_processes})
        named = [name for name, value in parallel if isinstance(value, int) and value > 1]
        return [
            *_overrides("parallel", parallel, self.configured.parallel, named),
            *_overrides("memory", self.run.config.memory, self.configured.memory),
        ]


def _overrides(table: str, section: Section, configured: Section, named: Sequence[str] = ()) -> Iterator[str]:
    """Yield an override for each key that differs from the configured section, and for the named ones."""
    for name, value in section:
        if isinstance(value, Section):
            yield from _overrides(f"{table}.{name}", value, getattr(configured, name))
        elif value != getattr(configured, name) or name in named:
            yield f"{table}.{name}={value if isinstance(value, str) else json.dumps(value)}"


def best_layouts(run: PlannedRun, max_results: int = 5, progress: Progress = SILENT) -> list[Candidate]:
    """Return the fastest layouts that fit on the run's GPUs, fastest first; empty if none fits."""
    fitting = []
    candidates = list(_candidates(run))
    with progress.phase("layouts tried", len(candidates)) as advance:
        for tried in candidates:
            candidate, memory = _with_moved_layers(tried)
            if memory.fits:
                fitting.append(
                    Candidate(
                        candidate, memory, plan_times(candidate, with_sync=False), configured=run.config
                    )
                )
            advance(1)
    # Among layouts of equal time, prefer the one that splits the model least, which is the simplest to run.
    fitting.sort(key=_rank)
    valid = islice((candidate for candidate in fitting if _is_valid(candidate.run)), max_results)
    # Planning a weight sync takes long, so only the layouts to be shown have one.
    return sorted((replace(candidate, times=plan_times(candidate.run)) for candidate in valid), key=_rank)


def _rank(candidate: Candidate) -> tuple[float, int]:
    layout = candidate.run.layout
    return candidate.times.seconds, layout.tp * layout.pp * layout.cp


def _is_valid(run: PlannedRun) -> bool:
    """Return whether the rules between tables allow the layout; asked of few candidates, because it takes a while."""
    try:
        PrimeConfig.model_validate(run.config.model_dump())
    except ValueError:
        return False
    arithmetic = BatchArithmetic.of(run.config, run.num_processes)
    return all(role.responses_per_minibatch >= arithmetic.data for role in arithmetic.roles)


def find_num_processes(run: PlannedRun) -> int | None:
    """Return the first number of processes at which some layout fits, or None.

    Numbers are tried by doubling the run's own number, or that of a node if it is larger.
    """
    number = max(run.num_processes, run.gpu.gpus_per_node)
    while number <= MAX_PROCESSES:
        tried = _candidates(replace(run, num_processes=number))
        if any(_with_moved_layers(candidate)[1].fits for candidate in tried):
            return number
        number *= 2
    return None


def misfit_message(run: PlannedRun, memory: MemoryPlan) -> str:
    """Return why a plan does not fit: the servers, the host memory, or the fullest phase with its largest parts."""
    if memory.server_fault:
        return f"does not fit: {memory.server_fault}"
    phase, size = memory.peak
    if size <= memory.limit:
        return (
            f"does not fit: a node needs {memory.host_node / GIB:,.0f} GiB of host memory, "
            f"{memory.host_checkpoint / GIB:,.0f} of them while a checkpoint is written, and has "
            f"{memory.host_limit / GIB:,.0f}: set checkpoint.async_save = false to write one model after another, "
            "offload less, or name the nodes' memory by --gpu-set host_memory_gib=GIB"
        )
    parts = sorted(memory.phases[phase].items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {part / GIB:.1f}" for name, part in parts if part > 0.01 * size)
    return (
        f"does not fit: in the {phase} phase a rank of pipeline stage {memory.stage} holds {size / GIB:.1f} GiB of the "
        f"{memory.limit / GIB:.1f} GiB of a {run.gpu.name} ({largest})"
    )


def _candidates(run: PlannedRun) -> Iterator[PlannedRun]:
    for sizes in _layouts(run):
        try:
            candidate = run.with_parallel(**sizes)
            split = ModelSplit.of(candidate.config.parallel)
            for shape in run.shapes.values():
                check_training(shape, split)
            _ = candidate.layout  # refuses sizes that do not fit the processes
        except ValueError:
            continue  # the sizes do not divide the model or the processes
        for memory in _memory_settings(run):
            if any(recompute_faults(run.shapes["policy"], split, memory.recompute)):
                continue  # `check` refuses it
            yield replace(candidate, config=candidate.config.model_copy(update={"memory": memory}))


def _with_moved_layers(run: PlannedRun) -> tuple[PlannedRun, MemoryPlan]:
    """Return the run and its memory, with layers moved off a stage that needs slightly more memory than there is."""
    plans = plan_stages(run)
    fullest = max(plans, key=lambda plan: plan.peak[1])
    is_near = len(plans) > 1 and not fullest.server_fault
    while is_near and not fullest.fits and fullest.peak[1] < _NEARLY * fullest.limit:
        emptiest = min(plans, key=lambda plan: plan.peak[1])
        moved = _with_moved_layer(run, fullest.stage, emptiest.stage)
        if moved is None:
            break
        plans = plan_stages(moved)
        after = max(plans, key=lambda plan: plan.peak[1])
        if after.peak[1] >= fullest.peak[1]:
            break
        run, fullest = moved, after
    return run, fullest


def _with_moved_layer(run: PlannedRun, source: int, target: int) -> PlannedRun | None:
    """Return the run with one layer more in a stage and one less in another; None if that cannot be."""
    stages = run.layout.stage_layers(run.shapes["policy"])
    counts = [[len(chunk) for chunk in chunks] for chunks in stages]
    for stage, choose, change in ((source, max, -1), (target, min, 1)):
        counts[stage][counts[stage].index(choose(counts[stage]))] += change
    in_order = tuple(chunks[index] for index in range(run.layout.vpp) for chunks in counts)
    try:
        moved = run.with_parallel(stage_layers=in_order)
        for shape in run.shapes.values():
            check_training(shape, ModelSplit.of(moved.config.parallel))
    except ValueError:
        return None
    recompute = run.config.memory.recompute
    if any(recompute_faults(run.shapes["policy"], ModelSplit.of(moved.config.parallel), recompute)):
        return None
    return moved


def _layouts(run: PlannedRun) -> Iterator[dict[str, int | bool | str]]:
    shape, number = run.shapes["policy"], run.num_processes
    longest = run.config.rollout.max_sequence_tokens
    contexts = [c for c in (1, 2, 4, 8) if c == 1 or longest >= LONG_SEQUENCE]
    # Tensor parallelism stays within a node, whose GPUs are connected by NVLink, and splits whole KV heads.
    for tensor in _powers_of_two(min(run.gpu.gpus_per_node, shape.num_query_groups, number)):
        for pipeline in range(1, shape.num_layers + 1):
            for context in contexts:
                size = tensor * pipeline * context
                if number % size:
                    continue
                experts = _powers_of_two(min(shape.num_experts, number // pipeline)) if shape.is_moe else [1]
                for expert in experts:
                    for chunks in (1, 2) if pipeline > 1 else (1,):
                        yield {
                            "tensor": tensor,
                            "pipeline": pipeline,
                            "context": context,
                            "expert": expert,
                            "expert_tensor": 1,
                            "virtual_pipeline": chunks,
                            "stage_layers": "auto",
                            # Sequence parallelism costs no more communication and saves activations, so it is always
                            # used where possible.
                            "sequence_parallel": tensor > 1,
                            "num_processes": number,
                        }


def _powers_of_two(limit: int) -> list[int]:
    return [1 << exponent for exponent in range(limit.bit_length())]


def _memory_settings(run: PlannedRun) -> list[MemoryConfig]:
    """Return each granularity of recomputation, with the configured offloading and with everything offloaded."""
    configured = run.config.memory
    everything = {
        "offload_policy_optimizer": True,
        "offload_prm": "prm" in run.shapes,
        "offload_reference": "reference" in run.shapes,
    }
    settings = [
        configured.model_copy(update={"recompute": _recompute(configured.recompute, granularity), **offload})
        for granularity in GRANULARITIES
        for offload in ({}, everything)
    ]
    return list(dict.fromkeys(settings))  # the configuration may offload everything already


def _recompute(configured: RecomputeConfig, granularity: str) -> RecomputeConfig:
    """Return the configured recomputation with another granularity."""
    if granularity == configured.granularity:
        return configured
    modules = configured.modules or RecomputeConfig().modules
    return RecomputeConfig(granularity=granularity, modules=modules)  # type: ignore[arg-type]
