"""Exhaustive search for the fastest layout that fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_prime.config.tables.memory import MemoryConfig, RecomputeConfig
from megatron_prime.hf.training_limits import ModelSplit, check_training
from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import MemoryPlan, plan_memory
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.planning.times import TimePlan, plan_times

MAX_PROCESSES = 8192
"""Largest number of processes that is tried."""
LONG_SEQUENCE = 16384
"""Sequence length in tokens from which on context parallelism is tried."""


@dataclass(frozen=True)
class Candidate:
    """A run in one layout, with its memory and time."""

    run: PlannedRun
    memory: MemoryPlan
    times: TimePlan

    def overrides(self) -> list[str]:
        """Return the command-line overrides that select this layout."""
        parallel, memory = self.run.config.parallel, self.run.config.memory
        sizes = ("tensor", "pipeline", "virtual_pipeline", "context", "expert", "expert_tensor")
        lines = [
            f"parallel.{name}={getattr(parallel, name)}" for name in sizes if getattr(parallel, name) > 1
        ]
        if parallel.sequence_parallel:
            lines.append("parallel.sequence_parallel=true")
        lines.append(f"parallel.num_processes={self.run.num_processes}")
        if memory.recompute.granularity != "none":
            lines.append(f"memory.recompute.granularity={memory.recompute.granularity}")
        lines += [f"memory.{name}=true" for name in _offloads(memory) if getattr(memory, name)]
        return lines


def _offloads(memory: MemoryConfig) -> list[str]:
    return [name for name in type(memory).model_fields if name.startswith("offload_")]


def best_layouts(run: PlannedRun, max_results: int = 5) -> list[Candidate]:
    """Return the fastest layouts that fit on the run's GPUs, fastest first; empty if none fits."""
    fitting = []
    for candidate in _candidates(run):
        memory = plan_memory(candidate)
        if memory.fits:
            fitting.append(Candidate(candidate, memory, plan_times(candidate, with_sync=False)))
    # Among layouts of equal time, prefer the one that splits the model least, which is the simplest to run.
    fitting.sort(key=lambda c: (c.times.seconds, c.run.layout.tp * c.run.layout.pp * c.run.layout.cp))
    return fitting[:max_results]


def find_num_processes(run: PlannedRun) -> int | None:
    """Return the first number of processes at which some layout fits, or None.

    Numbers are tried by doubling the run's own number, or that of a node if it is larger.
    """
    number = max(run.num_processes, run.gpu.gpus_per_node)
    while number <= MAX_PROCESSES:
        if any(plan_memory(candidate).fits for candidate in _candidates(replace(run, num_processes=number))):
            return number
        number *= 2
    return None


def misfit_message(run: PlannedRun, memory: MemoryPlan) -> str:
    """Return why a plan does not fit: the fullest phase, its total, and its largest parts."""
    phase, size = memory.peak
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
            for shape in run.shapes.values():
                check_training(shape, ModelSplit.of(candidate.config.parallel))
            _ = candidate.layout  # refuses sizes that do not fit the processes
        except ValueError:
            continue  # the sizes do not divide the model or the processes
        for memory in _memory_settings(run):
            yield replace(candidate, config=candidate.config.model_copy(update={"memory": memory}))


def _layouts(run: PlannedRun) -> Iterator[dict[str, int | bool]]:
    shape, number = run.shapes["policy"], run.num_processes
    longest = run.config.rollout.max_sequence_tokens
    contexts = [c for c in (1, 2, 4, 8) if c == 1 or longest >= LONG_SEQUENCE]
    # Tensor parallelism stays within a node, whose GPUs are connected by NVLink, and splits whole KV heads.
    for tensor in _powers_of_two(min(run.gpu.gpus_per_node, shape.num_query_groups, number)):
        for pipeline in (p for p in range(1, shape.num_layers + 1) if shape.num_layers % p == 0):
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
                            # Sequence parallelism costs no more communication and saves activations, so it is always
                            # used where possible.
                            "sequence_parallel": tensor > 1,
                            "num_processes": number,
                        }


def _powers_of_two(limit: int) -> list[int]:
    return [1 << exponent for exponent in range(limit.bit_length())]


def _memory_settings(run: PlannedRun) -> Iterator[MemoryConfig]:
    """Yield each granularity of recomputation, with the configured offloading and with everything offloaded."""
    configured = run.config.memory
    everything = {
        "offload_policy_optimizer": True,
        "offload_prm": "prm" in run.shapes,
        "offload_reference": "reference" in run.shapes,
    }
    for granularity in ("none", "selective", "full"):
        recompute = RecomputeConfig(granularity=granularity)
        for offload in ({}, everything):
            yield configured.model_copy(update={"recompute": recompute, **offload})
