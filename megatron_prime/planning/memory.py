"""Memory per rank, by part (weights, gradients, ...) and by phase of a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_prime.config.tables.performance.memory import MemoryConfig
from megatron_prime.hf.serving import SERVED_BYTES, cache_tokens, kv_bytes_per_token, num_parameters
from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.activations import routing_bytes, scoring_activations, training_activations
from megatron_prime.planning.counts import rank_parameters
from megatron_prime.planning.fp8 import fp8_weights
from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.planned_run import PlannedRun

PHASES = ("build", "start", "weight_sync", "rollout", "logprobs", "prm", "policy", "checkpoint")
GRAD_BYTES = 4
"""Bytes of a gradient per parameter: float32."""
MASTER_BYTES = 4
"""Bytes of a float32 master weight per parameter."""
MOMENT_BYTES = 8
"""Bytes of Adam's two float32 moments per parameter."""
FP8_COPIES = "FP8 copies"
"""Part of a role that stays on the GPU from its first pass on, whatever is offloaded; see planning/fp8.py."""
SERVER_AWAKE = 5 * GIB
"""Bytes of a server besides weights and KV cache: CUDA context, communicators, graphs and activations. SGLang itself
reserves about as much; not measured yet."""
SERVER_ASLEEP = 3 * GIB
"""Bytes that a server keeps after it has released its memory; not measured yet."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on a rank of a pipeline stage."""

    stage: int
    parts: Mapping[str, Mapping[str, int]]
    """Role -> bytes of its weights, FP8 copies, gradients and optimizer states while it is in use."""
    phases: Mapping[str, Mapping[str, int]]
    """Phase -> bytes on the GPU by part."""
    host: int = 0
    """Bytes of host memory for a rank's offloaded parts."""
    host_sent: int = 0
    """Bytes of host memory in which a rank keeps the weights that it sent to servers last."""
    host_checkpoint: int = 0
    """Bytes of host memory that a node needs besides while it writes a checkpoint."""
    host_node: int = 0
    """Bytes of host memory that the job needs on its fullest node."""
    limit: int = 0
    """Bytes of memory of the GPU."""
    host_limit: int = 0
    """Bytes of host memory of a node."""
    overhead: int = field(default=0)
    """Bytes of CUDA context, NCCL buffers and fragmentation."""
    server_fault: str = ""
    """The reason why the servers cannot hold the model, or nothing."""

    def total(self, phase: str) -> int:
        """Return the bytes on the GPU in a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> tuple[str, int]:
        """The phase with the most bytes on the GPU, and its bytes."""
        return max(((phase, self.total(phase)) for phase in self.phases), key=lambda item: item[1])

    @property
    def fits(self) -> bool:
        """True if every phase fits on the GPU, the job into the nodes' host memory, and the model into the servers."""
        return not self.server_fault and self.peak[1] <= self.limit and self.host_node <= self.host_limit


def plan_memory(run: PlannedRun) -> MemoryPlan:
    """Return the plan of the pipeline stage with the highest peak."""
    return max(plan_stages(run), key=lambda plan: plan.peak[1])


def plan_stages(run: PlannedRun) -> list[MemoryPlan]:
    """Return the plan of each pipeline stage."""
    return [plan_stage(run, stage) for stage in range(run.layout.pp)]


def role_bytes(run: PlannedRun, role: str, stage: int) -> dict[str, int]:
    """Return the bytes of a role's weights, FP8 copies, gradients and optimizer states, per rank of a stage."""
    layout = run.layout
    count = rank_parameters(run.shapes[role], layout, stage)
    fp8 = fp8_weights(run, role, stage)
    parts = {"weights": (count.total - fp8.replaced) * run.dtype_bytes}
    if fp8.replaced:
        parts["weights"] += fp8.copies
    elif fp8.copies:
        parts[FP8_COPIES] = fp8.copies
    if role in run.trained:
        # The distributed optimizer shards states over the replicas of a parameter: dp * cp for dense ones.
        expert_replicas = layout.ranks_per_stage // (layout.ep * layout.etp)
        sharded = count.dense / (layout.dp * layout.cp) + count.expert / expert_replicas
        parts |= {
            "gradients": count.total * GRAD_BYTES,
            "optimizer": int(sharded * (_master_bytes(run) + MOMENT_BYTES)),
        }
    return parts


def plan_stage(run: PlannedRun, stage: int) -> MemoryPlan:
    """Return the plan of a pipeline stage."""
    memory = run.config.memory
    parts = {role: role_bytes(run, role, stage) for role in run.shapes}
    phases = {
        phase: _build(run, memory, parts, stage)
        if phase == "build"
        else _residents(memory, parts, _in_use(run, parts, phase))
        for phase in PHASES
    }
    if "prm" not in run.shapes:
        del phases["prm"]
    overhead = int(run.assumptions.overhead_gib * GIB) if run.config.platform.device != "cpu" else 0
    for phase, held in phases.items():
        held |= _working(run, phase, stage) | _engine(run, phase)
        if overhead:
            held["overhead"] = overhead
    host = sum(
        size
        for role, sizes in parts.items()
        for part, size in sizes.items()
        # Gradients are dropped instead of copied, so they take no host memory.
        if part in memory.offloaded_parts(role) and part != "gradients"
    )
    sent = _sent_bytes(run, stage)
    written = num_checkpoint_writers(run) * sum(_saved_bytes(run, role, stage) for role in _saved(run, parts))
    return MemoryPlan(
        stage,
        parts,
        phases,
        host,
        sent,
        written,
        (host + sent) * min(run.num_processes, run.gpu.gpus_per_node) + written,
        int(run.gpu.memory_gib * GIB),
        int(run.gpu.host_memory_gib * GIB),
        overhead,
        _server_fault(run),
    )


def _server_fault(run: PlannedRun) -> str:
    """Return why the servers cannot hold the model and one sequence of the longest length, or nothing."""
    settings, shape = run.config.rollout.sglang, run.shapes["policy"]
    budget = settings.mem_fraction * run.gpu.memory_gib
    longest = run.config.rollout.max_sequence_tokens
    is_on_gpu = run.config.rollout.uses_servers and run.config.platform.device != "cpu"
    if not is_on_gpu or cache_tokens(shape, settings.tensor, int(budget * GIB)) >= longest:
        return ""
    weights = num_parameters(shape) * SERVED_BYTES / settings.tensor / GIB
    return (
        f"rollout.sglang.mem_fraction = {settings.mem_fraction} gives a server {budget:.1f} GiB of a {run.gpu.name}; "
        f"its weights take {weights:.1f} GiB with rollout.sglang.tensor = {settings.tensor}, which leaves no room for "
        f"a sequence of {longest:,} tokens: raise one of the two"
    )


def _sent_bytes(run: PlannedRun, stage: int) -> int:
    """Return the bytes of a rank's copy of what it sends to servers, from which it knows the changes of the next sync.

    The replicas of a weight share the servers, so that a rank keeps what its own servers get: all of its weights if
    there are as many servers as replicas.
    """
    settings = run.config.rollout.sglang
    if not run.config.rollout.uses_servers or not settings.sends_changes(is_colocated=run.is_colocated):
        return 0
    layout = run.layout
    count = rank_parameters(run.shapes["policy"], layout, stage)
    kept = count.dense * min(1.0, run.num_servers / (layout.dp * layout.cp))
    kept += count.expert * min(1.0, run.num_servers * layout.ep * layout.etp / layout.ranks_per_stage)
    return int(kept * run.dtype_bytes)


def _saved(run: PlannedRun, parts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the trained roles whose state a checkpoint holds in memory at once."""
    if run.config.checkpoint.async_save:
        return [*run.trained]
    return [max(run.trained, key=lambda role: sum(parts[role].values()))]


def _saved_bytes(run: PlannedRun, role: str, stage: int) -> int:
    """Return the bytes of a role that a writer of a checkpoint holds in host memory."""
    count = rank_parameters(run.shapes[role], run.layout, stage).total
    # Megatron gathers master weights and moments on the first data-parallel rank in float32.
    return count * (run.dtype_bytes + MASTER_BYTES + MOMENT_BYTES)


def num_checkpoint_writers(run: PlannedRun) -> int:
    """Return the number of ranks of the fullest node that gather and write a model-parallel share of a checkpoint."""
    layout, on_node = run.layout, min(run.num_processes, run.gpu.gpus_per_node)
    replicas = layout.cp * layout.dp
    # Ranks are numbered by tensor rank first, then by context and data rank, and last by pipeline stage.
    writers = [(rank // layout.tp) % replicas == 0 for rank in range(run.num_processes)]
    return max(sum(writers[first : first + on_node]) for first in range(0, run.num_processes, on_node))


def _in_use(
    run: PlannedRun, parts: Mapping[str, Mapping[str, int]], phase: str
) -> dict[str, tuple[str, ...]]:
    """Return the parts of each role that are on the device in a phase even if they are offloaded in others."""
    return {
        "logprobs": {"policy": ("weights",), "reference": ("weights",)},
        "prm": {"prm": ("weights", "gradients", "optimizer")},
        "policy": {"policy": ("weights", "gradients", "optimizer")},
        "weight_sync": {"policy": ("weights",)},
        "checkpoint": dict.fromkeys(_saved(run, parts), ("weights", "optimizer")),
    }.get(phase, {})


def _residents(
    memory: MemoryConfig, parts: Mapping[str, Mapping[str, int]], in_use: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """Return the bytes of the models that are on the device while some of their parts are in use."""
    held = {}
    for role, sizes in parts.items():
        offloaded = memory.offloaded_parts(role)
        for part, size in sizes.items():
            if part not in offloaded or part in in_use.get(role, ()):
                held[f"{role} {part}"] = size
    return held


def _build(
    run: PlannedRun, memory: MemoryConfig, parts: Mapping[str, Mapping[str, int]], stage: int
) -> dict[str, int]:
    """Return the bytes on the device while the role is built that needs most.

    One role after the other is built and then offloaded. Megatron copies the weights of a trained role into buffers,
    one for each chunk and for dense and expert weights, and frees what it has copied: when the last buffer is filled,
    its weights exist twice. Then the optimizer is made, and a resumed run reads the moments.
    """
    fullest: dict[str, int] = {}
    built: dict[str, Mapping[str, int]] = {}
    for role, sizes in parts.items():
        # The first pass makes the FP8 copies.
        sizes = {part: size for part, size in sizes.items() if part != FP8_COPIES}
        states = [{f"{role} {part}": size for part, size in sizes.items()}]
        if role in run.trained:
            count = rank_parameters(run.shapes[role], run.layout, stage)
            last = (count.expert or count.dense) * run.dtype_bytes // run.layout.vpp
            states.append(states[0] | {f"{role} weights": sizes["weights"] + last, f"{role} optimizer": 0})
        others = _residents(memory, built, {})
        fullest = max(fullest, *(others | state for state in states), key=lambda each: sum(each.values()))
        built[role] = sizes
    return fullest


def _master_bytes(run: PlannedRun) -> int:
    """Return the bytes of a master weight per parameter; weights in float32 serve as their own."""
    return MASTER_BYTES if run.dtype_bytes < MASTER_BYTES else 0


def _working(run: PlannedRun, phase: str, stage: int) -> dict[str, int]:
    """Return the bytes of the activations of a phase, with those of the output layer separately."""
    if phase == "logprobs":
        roles = [role for role in ("policy", "reference") if role in run.shapes]
        activations = max((scoring_activations(run, role, stage) for role in roles), key=lambda a: a.total)
    elif phase in run.trained:
        activations = training_activations(run, phase, stage, run.microbatches(phase))
    elif phase == "prm":
        activations = scoring_activations(run, phase, stage)
    else:
        return {}
    working = {"activations": activations.total - activations.tiles, "output layer": activations.tiles}
    if routing := sum(routing_bytes(run, role, stage) for role in run.shapes):
        working["routing"] = routing
    if run.config.parallel.sequence_parallel:
        # Megatron gathers the hidden states of a microbatch into one buffer, which it keeps for the whole run.
        tokens = run.config.trainer.max_tokens_per_microbatch // run.config.parallel.context
        working["gather buffer"] = tokens * run.shapes["policy"].hidden_size * run.dtype_bytes
    return working


def _engine(run: PlannedRun, phase: str) -> dict[str, int]:
    """Return the bytes that the rollout engine holds on a training rank's GPU."""
    shape = run.shapes["policy"]
    if phase == "build":
        return {}
    if not run.config.rollout.uses_servers:
        weights = num_parameters(shape) * run.dtype_bytes
        # The embedded engine keeps its copy of the weights in all phases, but its cache only while it samples.
        kv = _embedded_kv_bytes(run, shape) if phase == "rollout" else 0
        return {"engine weights": weights, "engine KV cache": kv}
    if not run.is_colocated:
        return {}
    if phase not in ("start", "weight_sync", "rollout"):
        return {"engine other": SERVER_ASLEEP}
    settings = run.config.rollout.sglang
    weights = num_parameters(shape) * SERVED_BYTES // settings.tensor
    if phase == "weight_sync":
        # The KV cache comes back after the sync, which has two halves of a buffer for the slices on their way.
        return {
            "engine weights": weights,
            "engine other": SERVER_AWAKE,
            "sync buffers": 2 * settings.weight_bucket_mib << 20,
        }
    # SGLang's mem_fraction covers weights and KV cache.
    budget = int(settings.mem_fraction * run.gpu.memory_gib * GIB)
    return {
        "engine weights": weights,
        "engine KV cache": max(0, budget - weights),
        "engine other": SERVER_AWAKE,
    }


def _embedded_kv_bytes(run: PlannedRun, shape: ModelShape) -> int:
    rollout = run.config.rollout
    sequences = min(rollout.max_batch_size, -(-run.rollouts // run.num_processes))
    longest = rollout.max_sequence_tokens
    return sequences * longest * kv_bytes_per_token(shape, run.dtype_bytes)
