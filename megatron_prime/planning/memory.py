"""Memory of a rank by part and by phase."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_prime.config.tables.memory import MemoryConfig
from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.activations import scoring_activations, training_activations
from megatron_prime.planning.counts import num_parameters, rank_parameters
from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.job import Job

PHASES = ("rollout", "logprobs", "prm", "policy", "weight_sync")
GRAD_BYTES = 4
MASTER_BYTES = 4
MOMENT_BYTES = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the fullest rank of a pipeline stage."""

    stage: int
    parts: Mapping[str, Mapping[str, int]]
    """Role -> weights, gradients, optimizer: while it is in use."""
    phases: Mapping[str, Mapping[str, int]]
    """Phase -> what is on the GPU, part by part."""
    host: int = 0
    """Host memory behind what is offloaded, of one rank."""
    limit: int = 0
    """Of the GPU."""
    overhead: int = field(default=0)

    def total(self, phase: str) -> int:
        """Bytes on the GPU in a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> tuple[str, int]:
        """(phase, bytes) where most is held."""
        return max(((phase, self.total(phase)) for phase in self.phases), key=lambda item: item[1])

    @property
    def fits(self) -> bool:
        """Whether every phase does."""
        return self.peak[1] <= self.limit


def plan_memory(job: Job) -> MemoryPlan:
    """The plan of the pipeline stage that holds most."""
    plans = [_plan_stage(job, stage) for stage in range(job.layout.pp)]
    return max(plans, key=lambda plan: plan.peak[1])


def role_bytes(job: Job, role: str, stage: int) -> dict[str, int]:
    """Weights, gradients and optimizer states of a role on a rank of a stage."""
    layout = job.layout
    count = rank_parameters(job.shapes[role], layout, stage)
    parts = {"weights": count.total * job.dtype_bytes}
    if role in job.trained:
        master = MASTER_BYTES if job.dtype_bytes < MASTER_BYTES else 0  # else the weights are their own
        expert_replicas = layout.ranks_per_stage // (layout.ep * layout.etp)
        sharded = count.dense / (layout.dp * layout.cp) + count.expert / expert_replicas
        parts |= {
            "gradients": count.total * GRAD_BYTES,
            "optimizer": int(sharded * (master + MOMENT_BYTES)),
        }
    return parts


def _plan_stage(job: Job, stage: int) -> MemoryPlan:
    memory = job.config.memory
    parts = {role: role_bytes(job, role, stage) for role in job.shapes}
    phases = {phase: _residents(memory, parts, phase) for phase in PHASES}
    if "prm" not in job.shapes:
        del phases["prm"]
    overhead = int(job.guess.overhead_gib * GIB) if job.config.platform.device != "cpu" else 0
    for phase, held in phases.items():
        held |= _working(job, phase, stage) | _engine(job, phase)
        if overhead:
            held["overhead"] = overhead
    host = sum(
        size
        for role, sizes in parts.items()
        for part, size in sizes.items()
        if part in memory.offloaded_parts(role) and part != "gradients"
    )
    return MemoryPlan(stage, parts, phases, host, int(job.gpu.memory_gib * GIB), overhead)


def _residents(memory: MemoryConfig, parts: Mapping[str, Mapping[str, int]], phase: str) -> dict[str, int]:
    """Models on the device in a phase."""
    in_use = {
        "logprobs": {"policy": ("weights",), "reference": ("weights",)},
        "prm": {"prm": ("weights", "gradients", "optimizer")},
        "policy": {"policy": ("weights", "gradients", "optimizer")},
        "weight_sync": {"policy": ("weights",)},
    }.get(phase, {})
    held = {}
    for role, sizes in parts.items():
        away = memory.offloaded_parts(role)
        for part, size in sizes.items():
            if part not in away or part in in_use.get(role, ()):
                held[f"{role} {part}"] = size
    return held


def _working(job: Job, phase: str, stage: int) -> dict[str, int]:
    """Activations of a phase, the output layer's share apart."""
    if phase == "logprobs":
        roles = [role for role in ("policy", "reference") if role in job.shapes]
        found = max((scoring_activations(job, role, stage) for role in roles), key=lambda a: a.total)
    elif phase in job.trained:
        found = training_activations(job, phase, stage, job.microbatches(phase))
    elif phase == "prm":
        found = scoring_activations(job, phase, stage)
    else:
        return {}
    return {"activations": found.total - found.tiles, "output layer": found.tiles}


def _engine(job: Job, phase: str) -> dict[str, int]:
    """What the engine holds on a training rank's GPU."""
    shape = job.shapes["policy"]
    if job.config.rollout.engine == "local":
        weights = num_parameters(shape) * job.dtype_bytes
        kv = _embedded_kv_bytes(job, shape) if phase == "rollout" else 0
        return {"engine weights": weights, "engine KV cache": kv}
    if not job.is_colocated or phase not in ("rollout", "weight_sync"):
        return {}
    weights = num_parameters(shape) * 2 // job.config.rollout.sglang.tensor
    budget = int(job.config.rollout.sglang.mem_fraction * job.gpu.memory_gib * GIB)
    kv = max(0, budget - weights) if phase == "rollout" else 0
    return {"engine weights": weights, "engine KV cache": kv}


def kv_bytes_per_token(shape: ModelShape, width: int = 2) -> int:
    """Keys and values of one token, over all layers."""
    return 2 * shape.kv_size * shape.num_layers * width


def _embedded_kv_bytes(job: Job, shape: ModelShape) -> int:
    rollout = job.config.rollout
    sequences = min(rollout.max_batch_size, -(-job.rollouts // job.num_processes))
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    return sequences * longest * kv_bytes_per_token(shape, job.dtype_bytes)
