"""The simulation of PRIME with 70B parameters on 128 H100: the examples with long, published lengths.

All speeds come from `megatron_prime.planning`, at its assumptions: training from `plan_times`, decoding from the bytes
of weights and KV cache that a step reads, a weight sync from the bytes on its links. Nothing of it has been measured on
a GPU.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.overlap.clock import Clock, Process
from benchmarks.overlap.fleet import Fleet
from benchmarks.overlap.lengths import Workload
from benchmarks.overlap.schedules import Site, Trainer, continuous, one_step_off, rounds, streaming
from benchmarks.overlap.servers import DecodeSpeed, Server, Verifiers
from benchmarks.reshard_layouts import LLAMA_70B
from megatron_prime.config.loading import load_config
from megatron_prime.hf.serving import SERVED_BYTES, cache_tokens, kv_bytes_per_token, num_parameters
from megatron_prime.planning.counts import forward_flops
from megatron_prime.planning.gpus import GB, GIB, KNOWN
from megatron_prime.planning.planned_run import Assumptions, PlannedRun
from megatron_prime.planning.times import plan_times

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED, APART = EXAMPLES / "prime_70b.toml", EXAMPLES / "prime_70b_overlap.toml"
"""The runs with servers on the GPUs of training ranks, and on GPUs of their own."""
GPU = KNOWN["H100-80G"]
NUM_GPUS = 128
SERVER_GPUS = 8
NUM_VERIFIERS = 128
WARM_UP = 5
"""Steps that are left out: the first ones find the servers empty."""
NUM_STEPS = 25
SPLITS = (64, 80, 96, 112)
"""GPUs of the trainer beside servers of their own."""


@dataclass(frozen=True)
class Row:
    """A schedule's figures, means over the steps after the warm-up."""

    name: str
    training_gpus: int
    server_gpus: int
    step_s: float
    train_s: float
    trainer_idle: float
    """Fraction of the time in which the trainer does not compute."""
    servers_idle: float
    """Fraction of the time in which a server has no response."""
    tokens_per_s: float
    """Tokens of responses trained on, per second and GPU of the whole job."""
    wasted: float
    """Fraction of the sampled tokens that are not trained on: groups that the filter drops, or that were aborted."""
    staleness: tuple[float, int]
    """Mean and maximum."""


def planned(training_gpus: int, response_tokens: float, workload: Workload, is_colocated: bool) -> PlannedRun:
    """Return the run to plan on that many GPUs for the trainer."""
    overrides = [
        f"parallel.num_processes={training_gpus}",
        f"rollout.max_response_tokens={workload.lengths.limit}",
        # A microbatch holds the longest sequence.
        f"trainer.max_tokens_per_microbatch={1024 + workload.lengths.limit}",
    ]
    # The layout and recomputation of the recorded results, which all splits allow.
    overrides += ["parallel.pipeline=4", "memory.recompute.granularity=selective"]
    if workload.lengths.limit > 8192:
        overrides.append("memory.recompute.granularity=full")
    if not is_colocated:
        urls = [f"http://server{index}:30000" for index in range((NUM_GPUS - training_gpus) // SERVER_GPUS)]
        overrides.append(f"rollout.sglang.urls={json.dumps(urls)}")
    config = load_config(SHARED if is_colocated else APART, overrides)
    shapes = dict.fromkeys(("policy", "prm", "reference"), LLAMA_70B)
    assumptions = Assumptions(workload.prompt_tokens, response_tokens)
    return PlannedRun(config, shapes, training_gpus, GPU, assumptions)


def trainer(run: PlannedRun) -> Trainer:
    """Return the trainer's speed: the planner's time for responses of the mean length, in proportion to the tokens."""
    phases = plan_times(run).phases
    seconds = sum(phases[name].seconds for name in ("logprobs", "prm", "policy"))
    return Trainer(0.0, seconds / run.tokens, phases["weight_sync"].seconds)


def decode_speed() -> DecodeSpeed:
    """Return the speed of a server: every step reads the weights, and the keys and values of all contexts."""
    assumptions = Assumptions(1.0, 1.0)
    bytes_per_s = SERVER_GPUS * GPU.memory_gb_s * GB * assumptions.decode_efficiency
    flops_per_s = SERVER_GPUS * GPU.bf16_tflops * 1e12 * assumptions.mfu
    return DecodeSpeed(
        base_s=num_parameters(LLAMA_70B) * SERVED_BYTES / bytes_per_s,
        per_context_token_s=kv_bytes_per_token(LLAMA_70B) / bytes_per_s,
        prefill_s_per_token=forward_flops(LLAMA_70B, 1, 1, 0) / flops_per_s,
    )


def num_places(workload: Workload, mem_fraction: float) -> int:
    """Return the responses that a server runs at once: those whose mean context fits into its KV cache, at most 256."""
    memory = int(mem_fraction * GPU.memory_gib * GIB)
    tokens = cache_tokens(LLAMA_70B, SERVER_GPUS, memory)
    return min(256, int(tokens / (workload.prompt_tokens + workload.lengths.mean)))


def simulate(
    name: str,
    schedule: Callable[[Site, int], Process],
    training_gpus: int,
    workload: Workload,
    mean_tokens: float,
    num_steps: int = NUM_STEPS,
) -> Row:
    """Return the figures of a schedule; servers are on the GPUs that the trainer does not use, or on all of them."""
    is_colocated = training_gpus == NUM_GPUS
    server_gpus = NUM_GPUS if is_colocated else NUM_GPUS - training_gpus
    clock, speed = Clock(), decode_speed()
    places = num_places(workload, 0.5 if is_colocated else 0.8)
    servers = [Server(clock, speed, places) for _ in range(server_gpus // SERVER_GPUS)]
    fleet = Fleet(clock, servers, Verifiers(clock, NUM_VERIFIERS))
    run = planned(training_gpus, mean_tokens, workload, is_colocated)
    prompts = run.config.trainer.prompts_per_step
    site = Site(clock, fleet, trainer(run), workload.draw, prompts, workload.group_size)
    clock.run(clock.start(schedule(site, num_steps)))
    first, steps = site.steps[WARM_UP - 1], site.steps[WARM_UP:]
    seconds = steps[-1].end - first.end
    tokens = sum(step.num_tokens for step in steps)
    staleness = [each for step in steps for each in step.staleness]
    return Row(
        name,
        training_gpus,
        server_gpus,
        seconds / len(steps),
        sum(step.train_s for step in steps) / len(steps),
        1 - sum(step.train_s for step in steps) / seconds,
        1 - (steps[-1].busy_s - first.busy_s) / seconds,
        tokens / seconds / NUM_GPUS,
        1 - tokens / (steps[-1].sampled - first.sampled),
        (sum(staleness) / len(staleness), max(staleness)),
    )


def best_split(
    name: str,
    schedule: Callable[[Site, int], Process],
    workload: Workload,
    mean_tokens: float,
    num_steps: int,
) -> Row:
    """Return the figures at the split of the GPUs with the shortest step."""
    rows = [simulate(name, schedule, gpus, workload, mean_tokens, num_steps) for gpus in SPLITS]
    return min(rows, key=lambda row: row.step_s)


def rows(workload: Workload | None = None, num_steps: int = NUM_STEPS) -> list[Row]:
    """Return the figures of all schedules."""
    work = workload or Workload()
    sample = [length for index in range(5000) for length in work.draw(index, 0).lengths]
    mean = sum(sample) / len(sample)
    shared = [
        simulate(name, schedule, NUM_GPUS, work, mean, num_steps)
        for name, schedule in (("rounds", rounds), ("streaming", streaming))
    ]
    split: dict[str, Callable[[Site, int], Process]] = {
        "streaming": streaming,
        "one step off": one_step_off,
        "k = 4, wait": lambda site, steps: continuous(site, steps, 4, "wait"),
        "k = 4, continue": lambda site, steps: continuous(site, steps, 4, "continue"),
    }
    return shared + [best_split(name, schedule, work, mean, num_steps) for name, schedule in split.items()]


def table(found: list[Row]) -> str:
    """Return the rows as a table; the last column compares with the first row."""
    lines = [
        "| schedule | GPUs: trainer + servers | step s | training s | trainer idle | servers idle | "
        "tokens/s per GPU | not trained on | staleness mean (max) | speed |",
        "|---" * 10 + "|",
    ]
    for row in found:
        gpus = "128, shared" if row.training_gpus == NUM_GPUS else f"{row.training_gpus} + {row.server_gpus}"
        lines.append(
            f"| {row.name} | {gpus} | {row.step_s:.0f} | {row.train_s:.0f} | {row.trainer_idle:.0%} | "
            f"{row.servers_idle:.0%} | {row.tokens_per_s:.0f} | {row.wasted:.0%} | "
            f"{row.staleness[0]:.1f} ({row.staleness[1]}) | {found[0].step_s / row.step_s:.2f} |"
        )
    return "\n".join(lines)


def short(workload: Workload) -> Workload:
    """Return the workload with the lengths that examples/prime_70b.toml allows: mean 1,024, limit 3,072."""
    return replace(workload, lengths=replace(workload.lengths, mean=1024.0, limit=3072))
