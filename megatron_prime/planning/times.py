"""Estimated seconds of a step by phase, from FLOPs and bytes at assumed efficiencies.

The estimate is optimistic: it leaves out imbalance between data-parallel ranks, waiting, and Python overhead.
"""

from dataclasses import dataclass

from megatron_prime.hf.serving import kv_bytes_per_token
from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.counts import (
    forward_flops,
    imbalance,
    num_active_parameters,
    num_parameters,
    rank_parameters,
)
from megatron_prime.planning.gpus import GB
from megatron_prime.planning.memory import role_bytes
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import PlanSummary, summary

BACKWARD = 2
"""FLOPs of a backward pass relative to a forward pass."""
NETWORK_EFFICIENCY = 0.7
"""Fraction of the link bandwidth that collectives reach."""


@dataclass(frozen=True)
class PhaseTime:
    """One phase of a step."""

    flops: float
    """FLOPs over all GPUs, including recomputation."""
    seconds: float


@dataclass(frozen=True)
class TimePlan:
    """The time of one step."""

    phases: dict[str, PhaseTime]
    bubble: float
    """Fraction of a policy update in which a pipeline stage is idle."""
    sync: PlanSummary | None
    """Bytes of a weight sync; None without SGLang servers, or if it was not planned."""
    samples_ahead: bool = False
    """True if later batches are sampled while the trainer learns from this one (rollout.max_staleness)."""

    @property
    def seconds(self) -> float:
        """Seconds per step."""
        return self.overlapped_seconds if self.samples_ahead else self.in_turn_seconds

    @property
    def in_turn_seconds(self) -> float:
        """Seconds per step if sampling and training take turns."""
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def overlapped_seconds(self) -> float:
        """Seconds per step if servers on GPUs of their own sample later batches meanwhile."""
        return self.sync_seconds + max(self.sampling_seconds, self.training_seconds)

    @property
    def sampling_seconds(self) -> float:
        """Seconds of a step in which responses are sampled."""
        return self.phases["rollout"].seconds

    @property
    def sync_seconds(self) -> float:
        """Seconds of a step in which weights go to the servers; 0 without a planned sync."""
        return self.phases["weight_sync"].seconds if "weight_sync" in self.phases else 0.0

    @property
    def training_seconds(self) -> float:
        """Seconds of a step in which the trainer computes."""
        return self.in_turn_seconds - self.sampling_seconds - self.sync_seconds


def bubble(pp: int, vpp: int, num_microbatches: int) -> float:
    """Return the fraction of time in which a pipeline stage is idle: (pp - 1) / (vpp * m + pp - 1)."""
    return (pp - 1) / (vpp * num_microbatches + pp - 1)


def plan_times(run: PlannedRun, with_sync: bool = True) -> TimePlan:
    """Estimate the seconds and FLOPs of a step by phase."""
    phases = {"rollout": _rollout(run)}
    scored = [role for role in ("policy", "reference") if role in run.shapes]
    phases["logprobs"] = _sum([_pass(run, role, 1.0) for role in scored])
    for role in run.trained:
        phases[role] = _update(run, role)
    if "prm" in run.shapes:
        scoring = _pass(run, "prm", 1.0)
        phases["prm"] = _sum([scoring, phases["prm"]]) if "prm" in phases else scoring
    for role in run.shapes:
        phase = "logprobs" if role == "reference" else role
        phases[phase] = _sum([phases[phase], PhaseTime(0.0, _offload_seconds(run, role))])
    sync = weight_sync(run) if with_sync else None
    if sync is not None:
        phases["weight_sync"] = PhaseTime(0.0, sync.seconds(run.gpu.nic_gb_s * GB, run.gpu.nvlink_gb_s * GB))
    order = ("rollout", "logprobs", "prm", "policy", "weight_sync")
    idle = bubble(run.layout.pp, run.layout.vpp, run.microbatches("policy"))
    ordered = {name: phases[name] for name in order if name in phases}
    return TimePlan(ordered, idle, sync, run.config.rollout.samples_ahead)


def _sum(parts: list[PhaseTime]) -> PhaseTime:
    return PhaseTime(sum(p.flops for p in parts), sum(p.seconds for p in parts))


def _pass(run: PlannedRun, role: str, passes: float) -> PhaseTime:
    """Return the time of a number of forward passes over the sequences of a step."""
    shape, assumptions = run.shapes[role], run.assumptions
    # Causal attention reads half of the context on average, which `forward_flops` takes into account.
    context = assumptions.prompt_tokens + assumptions.response_tokens
    work = run.tokens, context, run.rollouts * assumptions.response_tokens
    flops = passes * forward_flops(shape, *work)
    num_micro = run.microbatches(role)
    compute = flops / (run.num_processes * run.gpu.bf16_tflops * 1e12 * assumptions.mfu)
    # Stages wait while the pipeline fills and drains, which lengthens the pass by the idle fraction, and for the most
    # expensive stage.
    compute *= imbalance(shape, run.layout, *work) / (1 - bubble(run.layout.pp, run.layout.vpp, num_micro))
    # A backward pass sends the gradients of what the forward pass has sent; recomputation sends nothing.
    messages = _message_seconds(run, shape) * (1 if passes == 1 else 2)
    return PhaseTime(flops, compute + passes * _tensor_parallel_seconds(run, shape) + messages)


def _update(run: PlannedRun, role: str) -> PhaseTime:
    config = run.config.policy if role == "policy" else run.config.prm
    granularity = run.config.memory.recompute.granularity
    # Fraction of a forward pass that the backward pass repeats.
    recomputed = {"none": 0.0, "selective": 0.35, "full": 1.0}[granularity]
    one = _pass(run, role, 1 + BACKWARD + recomputed)
    updates = config.num_minibatches * config.num_epochs
    return PhaseTime(
        # All minibatches together make up the sequences of a step, so only the epochs multiply the passes.
        one.flops * config.num_epochs,
        one.seconds * config.num_epochs + updates * _optimizer_seconds(run, role),
    )


def _tensor_parallel_seconds(run: PlannedRun, shape: ModelShape) -> float:
    """Return the seconds of two all-reduces of hidden states per layer, one for attention and one for the MLP.

    With sequence parallelism each is a reduce-scatter and an all-gather, of the same volume. They use NVLink, or the
    NICs if the tensor-parallel group is larger than a node.
    """
    layout = run.layout
    if layout.tp == 1:
        return 0.0
    tokens = run.tokens / layout.dp / layout.cp
    # A ring all-reduce sends 2 (n - 1) / n of its data.
    num_bytes = 2 * 2 * (layout.tp - 1) / layout.tp * tokens * shape.hidden_size * run.dtype_bytes
    layers = max(sum(map(len, chunks)) for chunks in layout.stage_layers(shape))
    speed = run.gpu.nvlink_gb_s if layout.tp <= run.gpu.gpus_per_node else run.gpu.nic_gb_s
    return layers * num_bytes / (NETWORK_EFFICIENCY * speed * GB)


def _message_seconds(run: PlannedRun, shape: ModelShape) -> float:
    """Return the seconds in which a rank hands the hidden states of a step on to the next stage, once per chunk.

    Sending and receiving share no bandwidth, and nothing is computed meanwhile. Stages on different nodes use the NICs.
    """
    layout = run.layout
    if layout.pp == 1:
        return 0.0
    split = layout.tp if run.config.parallel.sequence_parallel else 1
    num_bytes = run.tokens / layout.dp / layout.cp * shape.hidden_size * run.dtype_bytes / split * layout.vpp
    speed = run.gpu.nvlink_gb_s if run.num_processes <= run.gpu.gpus_per_node else run.gpu.nic_gb_s
    return num_bytes / (NETWORK_EFFICIENCY * speed * GB)


def _optimizer_seconds(run: PlannedRun, role: str) -> float:
    """Return the seconds of an optimizer step.

    They are the reduce-scatter of float32 gradients, the all-gather of weights, and Adam's memory traffic of about 30
    bytes per parameter that the rank updates.
    """
    layout = run.layout
    count = rank_parameters(run.shapes[role], layout, 0)
    replicas = layout.dp * layout.cp
    moved = count.total * (4 + run.dtype_bytes) * (replicas - 1) / replicas
    within_node = layout.tp * replicas <= run.gpu.gpus_per_node
    speed = (run.gpu.nvlink_gb_s if within_node else run.gpu.nic_gb_s) * NETWORK_EFFICIENCY * GB
    touched = count.total / replicas * 30 + count.total * 4
    return moved / speed + touched / (run.gpu.memory_gb_s * GB)


def _offload_seconds(run: PlannedRun, role: str) -> float:
    """Return the seconds per step to load offloaded parts from host memory and to store them again.

    Gradients are dropped instead of copied, and the weights of a role that is not trained are not stored again.
    """
    parts = role_bytes(run, role, 0)
    offloaded = run.config.memory.offloaded_parts(role) - {"gradients"}
    trips = 2 if role in run.trained else 1
    return trips * sum(size for part, size in parts.items() if part in offloaded) / (run.gpu.host_gb_s * GB)


def _rollout(run: PlannedRun) -> PhaseTime:
    """Return the time to sample all responses of a step.

    Prefill is bound by FLOPs. Decoding is bound by FLOPs or by memory bandwidth, because each decoding step reads the
    weights and the KV cache of the running sequences, and it takes at least as long as the longest response alone,
    which is assumed to have rollout.max_response_tokens. With rollout.partial = "continue" responses go on over the
    weight syncs, so that the batches of max_staleness steps are in work together and the longest response has as long.
    """
    shape, assumptions, rollout = run.shapes["policy"], run.assumptions, run.config.rollout
    if rollout.uses_servers:
        settings = rollout.sglang
        replicas, width = run.num_servers, settings.tensor
        concurrent = settings.concurrency
    else:
        replicas, width, concurrent = run.num_processes, 1, rollout.max_batch_size
    sequences = run.rollouts / replicas
    batches_in_work = max(1, rollout.max_staleness) if rollout.partial == "continue" else 1
    batch_size = max(1.0, min(concurrent, sequences * batches_in_work))
    context = assumptions.prompt_tokens + assumptions.response_tokens
    prefill = (
        forward_flops(
            shape, run.rollouts * assumptions.prompt_tokens, assumptions.prompt_tokens, run.rollouts
        )
        / rollout.group_size
    )  # the responses of a group share the keys and values of their prompt
    decode = forward_flops(
        shape, run.rollouts * assumptions.response_tokens, context, run.rollouts * assumptions.response_tokens
    )
    gpus = replicas * width
    compute = prefill / (gpus * run.gpu.bf16_tflops * 1e12 * assumptions.mfu)
    # The tokens of a large batch together use every expert, those of a small one only some.
    used = num_active_parameters(shape) * batch_size
    weights = min(num_parameters(shape), used) * 2
    mean_cached = assumptions.prompt_tokens + assumptions.response_tokens / 2
    cache = batch_size * mean_cached * kv_bytes_per_token(shape)
    # The ranks of a server read their shards at the same time.
    step_bytes = (weights + cache) / width
    steps = assumptions.response_tokens * sequences / batch_size
    by_memory = steps * step_bytes / (run.gpu.memory_gb_s * GB * assumptions.decode_efficiency)
    alone = rollout.max_response_tokens * min(num_parameters(shape), num_active_parameters(shape)) * 2 / width
    alone /= batches_in_work
    by_memory = max(by_memory, alone / (run.gpu.memory_gb_s * GB * assumptions.decode_efficiency))
    by_compute = decode / (gpus * run.gpu.bf16_tflops * 1e12 * assumptions.mfu)
    return PhaseTime(prefill + decode, compute + max(by_memory, by_compute))


def weight_sync(run: PlannedRun) -> PlanSummary | None:
    """Return the bytes of one weight sync to the SGLang servers, or None for the embedded engine."""
    engines = run.engines
    if engines is None:
        return None
    plan = plan_reshard(
        run.shapes["policy"],
        run.layout,
        engines,
        bytes_per_element=run.dtype_bytes,
        ranks_per_node=run.gpu.gpus_per_node,
    )
    return summary(plan)
