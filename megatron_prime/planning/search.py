"""The fastest layout that fits, by trying them all."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_prime.config.tables.memory import MemoryConfig, RecomputeConfig
from megatron_prime.hf.mapping import check_expert_parallel, check_tensor_parallel
from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.job import Job
from megatron_prime.planning.memory import MemoryPlan, plan_memory
from megatron_prime.planning.times import TimePlan, plan_times

MOST_PROCESSES = 8192
LONG_SEQUENCE = 16384
"""Tokens from which on splitting sequences is tried."""


@dataclass(frozen=True)
class Candidate:
    """A layout with what it needs and takes."""

    job: Job
    memory: MemoryPlan
    times: TimePlan

    def overrides(self) -> list[str]:
        """What to add to the command line for it."""
        parallel, memory = self.job.config.parallel, self.job.config.memory
        sizes = ("tensor", "pipeline", "virtual_pipeline", "context", "expert", "expert_tensor")
        lines = [
            f"parallel.{name}={getattr(parallel, name)}" for name in sizes if getattr(parallel, name) > 1
        ]
        if parallel.sequence_parallel:
            lines.append("parallel.sequence_parallel=true")
        lines.append(f"parallel.num_processes={self.job.num_processes}")
        if memory.recompute.granularity != "none":
            lines.append(f"memory.recompute.granularity={memory.recompute.granularity}")
        lines += [f"memory.{name}=true" for name in _offloads(memory) if getattr(memory, name)]
        return lines


def _offloads(memory: MemoryConfig) -> list[str]:
    return [name for name in type(memory).model_fields if name.startswith("offload_")]


def best_layouts(job: Job, most: int = 5) -> list[Candidate]:
    """The fastest that fit, fastest first; empty when none does."""
    fitting = []
    for candidate in _candidates(job):
        memory = plan_memory(candidate)
        if memory.fits:
            fitting.append(Candidate(candidate, memory, plan_times(candidate, with_sync=False)))
    # Equal times: the fewer parts a model is in, the less can go wrong.
    fitting.sort(key=lambda c: (c.times.seconds, c.job.layout.tp * c.job.layout.pp * c.job.layout.cp))
    return fitting[:most]


def fewest_processes(job: Job) -> int | None:
    """Doubling from the job's own number (or a node), the first at which some layout fits."""
    number = max(job.num_processes, job.gpu.gpus_per_node)
    while number <= MOST_PROCESSES:
        if any(plan_memory(candidate).fits for candidate in _candidates(replace(job, num_processes=number))):
            return number
        number *= 2
    return None


def refusal(job: Job, memory: MemoryPlan) -> str:
    """Why a plan does not fit: the fullest phase, its largest parts, and what they add up to."""
    phase, size = memory.peak
    parts = sorted(memory.phases[phase].items(), key=lambda item: -item[1])
    told = ", ".join(f"{name} {part / GIB:.1f}" for name, part in parts if part > 0.01 * size)
    return (
        f"does not fit: in the {phase} phase a rank of pipeline stage {memory.stage} holds {size / GIB:.1f} GiB of the "
        f"{memory.limit / GIB:.1f} GiB of a {job.gpu.name} ({told})"
    )


def _candidates(job: Job) -> Iterator[Job]:
    shape = job.shapes["policy"]
    for sizes in _layouts(job):
        try:
            for other in job.shapes.values():
                check_tensor_parallel(other, int(sizes["tensor"]))
                check_expert_parallel(other, int(sizes["expert"]), 1)
            moved = job.with_parallel(**sizes)
            moved.layout.stage_layers(shape.num_layers)
        except ValueError:
            continue
        for memory in _memory_settings(job):
            yield replace(moved, config=moved.config.model_copy(update={"memory": memory}))


def _layouts(job: Job) -> Iterator[dict[str, int | bool]]:
    shape, number = job.shapes["policy"], job.num_processes
    longest = job.config.rollout.max_prompt_tokens + job.config.rollout.max_response_tokens
    contexts = [c for c in (1, 2, 4, 8) if c == 1 or longest >= LONG_SEQUENCE]
    for tensor in _powers(min(job.gpu.gpus_per_node, shape.num_query_groups, number)):
        for pipeline in (p for p in range(1, shape.num_layers + 1) if shape.num_layers % p == 0):
            for context in contexts:
                size = tensor * pipeline * context
                if number % size:
                    continue
                experts = _powers(min(shape.num_experts, number // pipeline)) if shape.is_moe else [1]
                for expert in experts:
                    for chunks in (1, 2) if pipeline > 1 else (1,):
                        yield {
                            "tensor": tensor,
                            "pipeline": pipeline,
                            "context": context,
                            "expert": expert,
                            "expert_tensor": 1,
                            "virtual_pipeline": chunks,
                            "sequence_parallel": tensor > 1,
                            "num_processes": number,
                        }


def _powers(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length())]


def _memory_settings(job: Job) -> Iterator[MemoryConfig]:
    """As configured; with each kind of recomputation; and with everything offloaded that the run has."""
    given = job.config.memory
    everything = {
        "offload_policy_optimizer": True,
        "offload_prm": "prm" in job.shapes,
        "offload_reference": "reference" in job.shapes,
    }
    for granularity in ("none", "selective", "full"):
        recompute = RecomputeConfig(granularity=granularity)
        for offload in ({}, everything):
            yield given.model_copy(update={"recompute": recompute, **offload})
