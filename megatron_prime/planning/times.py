"""Seconds of a step by phase, from FLOPs and bytes; a floor with honest efficiencies, not a promise."""

from dataclasses import dataclass

from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.counts import (
    forward_flops,
    num_active_parameters,
    num_parameters,
    rank_parameters,
)
from megatron_prime.planning.gpus import GB
from megatron_prime.planning.job import Job
from megatron_prime.planning.memory import role_bytes
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import PlanSummary, summary

BACKWARD = 2
"""Of a forward pass's FLOPs."""


@dataclass(frozen=True)
class PhaseTime:
    """One phase of a step."""

    flops: float
    """Over all GPUs, recomputation included."""
    seconds: float


@dataclass(frozen=True)
class TimePlan:
    """One step."""

    phases: dict[str, PhaseTime]
    bubble: float
    """Share of a policy update in which a pipeline stage waits."""
    sync: PlanSummary | None
    """Bytes of a weight sync; None for the embedded engine on one process and for servers of unknown place."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(phase.seconds for phase in self.phases.values())


def bubble(pp: int, vpp: int, num_microbatches: int) -> float:
    """Share of a pipeline's time in which a stage waits: (pp - 1) / (vpp m + pp - 1)."""
    return (pp - 1) / (vpp * num_microbatches + pp - 1)


def plan_times(job: Job, with_sync: bool = True) -> TimePlan:
    """Seconds and FLOPs by phase."""
    phases = {"rollout": _rollout(job)}
    scored = [role for role in ("policy", "reference") if role in job.shapes]
    phases["logprobs"] = _sum([_pass(job, role, 1.0) for role in scored])
    for role in job.trained:
        phases[role] = _update(job, role)
    if "prm" in job.shapes:
        scoring = _pass(job, "prm", 1.0)
        phases["prm"] = _sum([scoring, phases["prm"]]) if "prm" in phases else scoring
    for role in job.shapes:
        phase = "logprobs" if role == "reference" else role
        phases[phase] = _sum([phases[phase], PhaseTime(0.0, _offload_seconds(job, role))])
    counted = weight_sync(job) if with_sync else None
    if counted is not None:
        phases["weight_sync"] = PhaseTime(
            0.0, counted.seconds(job.gpu.nic_gb_s * GB, job.gpu.nvlink_gb_s * GB)
        )
    order = ("rollout", "logprobs", "prm", "policy", "weight_sync")
    waiting = bubble(job.layout.pp, job.layout.vpp, job.microbatches("policy"))
    return TimePlan({name: phases[name] for name in order if name in phases}, waiting, counted)


def _sum(parts: list[PhaseTime]) -> PhaseTime:
    return PhaseTime(sum(p.flops for p in parts), sum(p.seconds for p in parts))


def _pass(job: Job, role: str, passes: float) -> PhaseTime:
    """So many forward passes' work over a step's sequences."""
    shape, guess = job.shapes[role], job.guess
    context = guess.prompt_tokens + guess.response_tokens
    flops = passes * forward_flops(shape, job.tokens, context, job.rollouts * guess.response_tokens)
    num_micro = job.microbatches(role)
    compute = flops / (job.num_processes * job.gpu.bf16_tflops * 1e12 * guess.mfu)
    compute /= 1 - bubble(job.layout.pp, job.layout.vpp, num_micro)
    return PhaseTime(flops, compute + passes * _tensor_parallel_seconds(job, shape))


def _update(job: Job, role: str) -> PhaseTime:
    config = job.config.policy if role == "policy" else job.config.prm
    granularity = job.config.memory.recompute.granularity
    again = {"none": 0.0, "selective": 0.35, "full": 1.0}[granularity]
    one = _pass(job, role, 1 + BACKWARD + again)
    updates = config.num_minibatches * config.num_epochs
    return PhaseTime(
        one.flops * config.num_epochs,
        one.seconds * config.num_epochs + updates * _optimizer_seconds(job, role),
    )


def _tensor_parallel_seconds(job: Job, shape: ModelShape) -> float:
    """Two all-reduces (or their halves) of hidden states a layer, on NVLink, or on NICs where a node is too small."""
    layout = job.layout
    if layout.tp == 1:
        return 0.0
    tokens = job.tokens / layout.dp / layout.cp
    num_bytes = 2 * 2 * (layout.tp - 1) / layout.tp * tokens * shape.hidden_size * job.dtype_bytes
    layers = shape.num_layers / layout.pp
    speed = job.gpu.nvlink_gb_s if layout.tp <= job.gpu.gpus_per_node else job.gpu.nic_gb_s
    return layers * num_bytes / (0.7 * speed * GB)


def _optimizer_seconds(job: Job, role: str) -> float:
    """Reduce-scatter of fp32 gradients, all-gather of weights, and Adam's traffic in the GPU's memory."""
    layout = job.layout
    count = rank_parameters(job.shapes[role], layout, 0)
    replicas = layout.dp * layout.cp
    moved = count.total * (4 + job.dtype_bytes) * (replicas - 1) / replicas
    within_node = layout.tp * replicas <= job.gpu.gpus_per_node
    speed = (job.gpu.nvlink_gb_s if within_node else job.gpu.nic_gb_s) * 0.7 * GB
    touched = count.total / replicas * 30 + count.total * 4
    return moved / speed + touched / (job.gpu.memory_gb_s * GB)


def _offload_seconds(job: Job, role: str) -> float:
    """Back from host memory and away again; gradients have no copy, and constant weights are not written back."""
    parts = role_bytes(job, role, 0)
    away = job.config.memory.offloaded_parts(role) - {"gradients"}
    trips = 2 if role in job.trained else 1
    return trips * sum(size for part, size in parts.items() if part in away) / (job.gpu.host_gb_s * GB)


def _rollout(job: Job) -> PhaseTime:
    """Prompts by FLOPs; then token by token, each step reading the weights and the KV cache of what is running."""
    shape, guess, rollout = job.shapes["policy"], job.guess, job.config.rollout
    if rollout.engine == "sglang":
        settings = rollout.sglang
        replicas, width = job.num_servers, settings.tensor
        concurrent = settings.concurrency
    else:
        replicas, width, concurrent = job.num_processes, 1, rollout.max_batch_size
    sequences = job.rollouts / replicas
    at_once = max(1.0, min(concurrent, sequences))
    context = guess.prompt_tokens + guess.response_tokens
    prefill = (
        forward_flops(shape, job.rollouts * guess.prompt_tokens, guess.prompt_tokens, job.rollouts)
        / rollout.group_size
    )  # the prompt's keys and values are shared by its responses
    decode = forward_flops(
        shape, job.rollouts * guess.response_tokens, context, job.rollouts * guess.response_tokens
    )
    gpus = replicas * width
    compute = prefill / (gpus * job.gpu.bf16_tflops * 1e12 * guess.mfu)
    # A step of many tokens meets every expert.
    few = num_active_parameters(shape) * at_once
    weights = min(num_parameters(shape), few) * 2
    cache = (
        at_once * (guess.prompt_tokens + guess.response_tokens / 2) * 2 * 2 * shape.kv_size * shape.num_layers
    )
    step_bytes = (weights + cache) / width
    steps = guess.response_tokens * sequences / at_once
    by_memory = steps * step_bytes / (job.gpu.memory_gb_s * GB * guess.decode_efficiency)
    by_compute = decode / (gpus * job.gpu.bf16_tflops * 1e12 * guess.mfu)
    return PhaseTime(prefill + decode, compute + max(by_memory, by_compute))


def weight_sync(job: Job) -> PlanSummary | None:
    """Bytes of one sync into the servers; None where there are none of ours."""
    engines = job.engines
    if engines is None:
        return None
    plan = plan_reshard(
        job.shapes["policy"],
        job.layout,
        engines,
        bytes_per_element=job.dtype_bytes,
        ranks_per_node=job.gpu.gpus_per_node,
    )
    return summary(plan)
