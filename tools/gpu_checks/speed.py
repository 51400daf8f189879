"""A training step of a real model: MFU, speed of FP8 relative to bf16, and memory compared to the plan."""

import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_prime.hf.serving import num_parameters
from megatron_prime.planning.counts import forward_flops
from megatron_prime.planning.gpus import GIB, GPU, KNOWN
from megatron_prime.planning.memory import MemoryPlan, plan_memory
from megatron_prime.planning.planned_run import Assumptions, read_planned_run
from tools.gpu_checks.lines import FAULTS, Line, Setting, failed, info, judged, skipped
from tools.gpu_checks.machine import synchronize
from tools.gpu_checks.roles import (
    FP8_RECIPES,
    Roles,
    fp8_fault_here,
    make_config,
    plain_loss,
    random_sequences,
    roles,
    write_shape,
)

MFU_GOAL = 0.45
FP8_GOAL = 1.25
MEMORY_GOAL = 0.1
PROMPT_TOKENS, RESPONSE_TOKENS = 128, 896
"""Lengths of a sequence: ROWS sequences fill a microbatch of 4,096 tokens."""
TINY_TOKENS = (16, 48)
ROWS = 4
"""Sequences per microbatch."""
MICROBATCHES = 8
"""Microbatches of the update whose speed is judged. An update of a single microbatch, mostly spent in the optimizer, is
reported too."""
RECOMPUTES = ("none", "selective", "full")
POLICY_ALONE = ("prm.enabled=false", "policy.lr=1e-6")


def step_1_5b(setting: Setting) -> Iterator[Line]:
    """Measure a training step in the shape of Qwen2.5-1.5B."""
    yield from _training_step("qwen2.5-1.5b", setting)


def step_3b(setting: Setting) -> Iterator[Line]:
    """Measure a training step in the shape of Llama-3.2-3B."""
    yield from _training_step("llama-3.2-3b", setting)


def gpu_here(setting: Setting) -> GPU | None:
    """Return the data sheet of this GPU; None without a GPU, or for an unknown one."""
    if not setting.is_cuda:
        return None
    name = torch.cuda.get_device_name(0)
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    # Several data sheets share a name ("H100") and differ in memory, so the closest memory decides.
    alike = [gpu for gpu in KNOWN.values() if gpu.name.split("-")[0] in name.replace(" ", "-").split("-")]
    return min(alike, key=lambda gpu: abs(gpu.memory_gib - total), default=None)


def _training_step(shape_name: str, setting: Setting) -> Iterator[Line]:
    model = write_shape(setting, shape_name)
    recompute = _recompute_that_fits(model, setting)
    yield info(
        "recomputation",
        recompute,
        note="the least that fits according to `plan`; recomputed FLOPs do not count",
    )
    seconds_of: dict[str, float] = {}
    forms: list[tuple[str, str, tuple[str, ...]]] = [
        ("bf16", "", ()),
        ("bf16, torch layers", "", ("platform.layers=torch",)),
        *((f"fp8 {recipe}", recipe, (f"fp8.policy={recipe}",)) for recipe in FP8_RECIPES),
    ]
    for name, recipe, overrides in forms:
        reason = fp8_fault_here(recipe, setting) if recipe else None
        if reason is None and name == "bf16, torch layers" and not setting.is_cuda:
            reason = "no GPU: the same as bf16"
        if reason is not None:
            yield skipped(f"update, {name}", reason)
            continue
        shared = ("platform.dtype=bf16", f"memory.recompute.granularity={recompute}", *_limits(setting))
        try:
            with roles(setting, model, *shared, *overrides, load_weights=False) as built:
                by_size = {number: _update_seconds(built, number, setting) for number in (1, MICROBATCHES)}
                yield from _speed_lines(name, built, by_size, setting)
        except FAULTS as error:
            yield failed(f"update, {name}", error)
            continue
        seconds_of[name] = by_size[MICROBATCHES]
    base = seconds_of.get("bf16", math.nan)
    gains = {name: base / seconds for name, seconds in seconds_of.items() if name.startswith("fp8")}
    what, goal = f"best FP8 recipe: speed relative to bf16, {MICROBATCHES} microbatches", f">= {FP8_GOAL}"
    if not gains:
        yield skipped(what, "no FP8 recipe ran", goal)
        return
    note = ", ".join(f"{name} {gain:.3f}" for name, gain in gains.items())
    best = max(gains.values())
    yield judged(what, best, "x", goal, best >= FP8_GOAL, note, setting.why_no_speed)


def _limits(setting: Setting) -> tuple[str, ...]:
    """Return overrides for the policy alone, with microbatches of ROWS sequences."""
    prompt, response = _tokens(setting)
    return (
        *POLICY_ALONE,
        f"rollout.max_prompt_tokens={prompt}",
        f"rollout.max_response_tokens={response}",
        f"trainer.max_tokens_per_microbatch={ROWS * (prompt + response)}",
    )


def _tokens(setting: Setting) -> tuple[int, int]:
    return TINY_TOKENS if setting.is_tiny else (PROMPT_TOKENS, RESPONSE_TOKENS)


def _sequences(built: Roles, num_microbatches: int, setting: Setting) -> list[tuple[list[int], list[int]]]:
    prompt, response = _tokens(setting)
    shape = built.policy.built.shape
    return random_sequences(shape.vocab_size, num_microbatches * ROWS, prompt, response)


def _update_seconds(built: Roles, num_microbatches: int, setting: Setting) -> float:
    """Return the median duration of an update over full microbatches, optimizer step included, after two warm-ups."""
    sequences = _sequences(built, num_microbatches, setting)
    times = []
    for index in range(3 if setting.is_tiny else 7):
        synchronize(setting)
        start = time.perf_counter()
        built.policy.update(sequences, range(len(sequences)), plain_loss)
        synchronize(setting)
        if index >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _speed_lines(name: str, built: Roles, by_size: dict[int, float], setting: Setting) -> Iterator[Line]:
    gpu, shape = gpu_here(setting), built.policy.built.shape
    prompt, response = _tokens(setting)
    for number, seconds in by_size.items():
        rows = number * ROWS
        tokens = rows * (prompt + response)
        what = f"update, {name}, {number} x {tokens // number:,} tokens"
        yield info(what, tokens / seconds, "tokens/s", f"{1e3 * seconds:.1f} ms")
        # The backward pass takes twice the FLOPs of the forward pass.
        flops = 3 * forward_flops(shape, tokens, prompt + response, rows * response)
        if gpu is None:
            yield skipped(f"{what}: MFU", "no GPU, or one whose peak is unknown")
            continue
        mfu = flops / seconds / (gpu.bf16_tflops * 1e12)
        note = f"{num_parameters(shape) / 1e9:.2f}B parameters; peak {gpu.bf16_tflops} TFLOP/s of bf16 ({gpu.name})"
        is_goal = name == "bf16" and number == MICROBATCHES
        if is_goal:
            goal = f">= {MFU_GOAL}"
            yield judged(f"{what}: MFU", mfu, "", goal, mfu >= MFU_GOAL, note, setting.why_no_speed)
        else:
            yield info(f"{what}: MFU", mfu, "", note)


def _plan(model: Path, setting: Setting, num_microbatches: int, *overrides: str) -> MemoryPlan:
    """Plan the memory of the policy alone, on this GPU, or on an H100 if there is none."""
    prompt, response = _tokens(setting)
    config = make_config(
        setting,
        model,
        "platform.dtype=bf16",
        *_limits(setting),
        f"trainer.prompts_per_step={num_microbatches * ROWS // 4}",
        *overrides,
    )
    return plan_memory(
        read_planned_run(config, 1, gpu_here(setting) or KNOWN["H100-80G"], Assumptions(prompt, response))
    )


def _of_policy(plan: MemoryPlan) -> dict[str, int]:
    """Return the planned bytes of the policy's phase that exist here too: no rollout engine, no overhead estimate."""
    held = plan.phases["policy"]
    return {
        "models": sum(size for part, size in held.items() if part.startswith("policy ")),
        "working": held["activations"] + held["output layer"],
    }


def _recompute_that_fits(model: Path, setting: Setting) -> str:
    gpu = gpu_here(setting) or KNOWN["H100-80G"]
    # RECOMPUTES is in ascending order of recomputed work.
    for granularity in RECOMPUTES:
        plan = _plan(model, setting, MICROBATCHES, f"memory.recompute.granularity={granularity}")
        if sum(_of_policy(plan).values()) + plan.overhead < gpu.memory_gib * GIB:
            return granularity
    return RECOMPUTES[-1]


def memory(setting: Setting) -> Iterator[Line]:
    """Compare the memory of an update of the 1.5B model to the prediction of `megatron-prime plan`."""
    model = write_shape(setting, "qwen2.5-1.5b")
    forms = [
        ("torch layers", ("platform.layers=torch",)),
        ("Transformer Engine layers", ("platform.layers=auto",)),
    ]
    for name, overrides in forms if setting.is_cuda else forms[:1]:
        for recompute in RECOMPUTES:
            chosen = (f"memory.recompute.granularity={recompute}", *overrides)
            planned = _of_policy(_plan(model, setting, 2, *chosen))
            try:
                with roles(
                    setting, model, "platform.dtype=bf16", *_limits(setting), *chosen, load_weights=False
                ) as built:
                    measured = _measured_bytes(built, setting)
                yield from _memory_lines(f"{name}, recompute {recompute}", planned, measured, setting)
            except FAULTS as error:
                yield failed(f"{name}, recompute {recompute}", error)


def _memory_lines(
    name: str, planned: dict[str, int], measured: dict[str, int], setting: Setting
) -> Iterator[Line]:
    for part in ("models", "working"):
        note = f"planned {planned[part] / GIB:.4g} GiB"
        yield info(f"{name}: {part}", measured[part] / GIB, "GiB", note)
    ratio = sum(planned.values()) / sum(measured.values())
    is_met = abs(ratio - 1) <= MEMORY_GOAL
    why_not = "toy size: a model of 20 thousand parameters" if setting.is_tiny else None
    yield judged(f"{name}: planned / measured", ratio, "", f"1 +- {MEMORY_GOAL}", is_met, why_not=why_not)


def _measured_bytes(built: Roles, setting: Setting) -> dict[str, int]:
    """Return the bytes of weights, gradients and optimizer states, and the peak of an update's passes beyond them."""
    policy, sequences = built.policy, _sequences(built, 2, setting)
    policy.update(sequences[:2], [0, 1], plain_loss)  # creates the optimizer states
    models = policy.residency.bytes_here()
    rows = range(len(sequences))
    if setting.is_cuda:
        synchronize(setting)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        policy._pass.backward(sequences, rows, plain_loss)
        synchronize(setting)
        return {"models": models, "working": torch.cuda.max_memory_allocated() - before}
    from benchmarks.live_bytes import LiveBytes

    with LiveBytes([*policy.built.module.parameters(), *policy._gradients()]) as counted:
        policy._pass.backward(sequences, rows, plain_loss)
    return {"models": models, "working": counted.peak}
