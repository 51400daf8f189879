"""An SGLang server: weight syncs by each transport, in bf16 and FP8, released memory, and equal log-probs."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_prime.cli.assemble import RolloutParts, build_rollout
from megatron_prime.rollout.weight_sync import WeightSync
from megatron_prime.training.health.mismatch import Mismatch
from megatron_prime.training.phase_memory import free_memory_for_servers
from megatron_prime.types import Prompt, SamplingParams
from tools.gpu_checks.lines import FAULTS, Line, Setting, failed, info, judged, skipped
from tools.gpu_checks.machine import median_seconds, synchronize
from tools.gpu_checks.roles import Roles, random_sequences, roles, write_shape

SYNC_FIXED_S = 0.3
"""Seconds that the control calls of a sync may take, however small the model is: they are six HTTP requests."""
SYNC_GOAL = 2.0
"""Time of the transfer, in times of a copy of the weights on the device."""
GAP_GOALS = {"none": 0.05, "fp8": 0.15}
"""Mean log-prob gap in nats, by rollout.sglang.quantization."""


@dataclass(frozen=True)
class Case:
    """A server to measure, and the way to it."""

    name: str
    transport: str
    shape: str = "qwen2.5-1.5b"
    quantization: str = "none"
    is_colocated: bool = True


CASES = (
    Case("ipc", "ipc"),
    Case("ipc, FP8 of Qwen2", "ipc", quantization="fp8"),
    Case("ipc, FP8 of Llama", "ipc", "llama-3.2-3b", "fp8"),
    Case("shards", "shards", is_colocated=False),
)


def serving(setting: Setting) -> Iterator[Line]:
    """Measure sync times, memory released and taken back, and the log-prob gap, in each case."""
    assert setting.sglang_python is not None, "the check is skipped without it"
    for case in CASES:
        reason = _reason_to_skip(case, setting)
        if reason is not None:
            yield skipped(f"{case.name}: weight sync", reason, _goal())
            continue
        try:
            yield from _measured(case, setting)
        except FAULTS as error:
            yield failed(case.name, error)


def _reason_to_skip(case: Case, setting: Setting) -> str | None:
    if case.quantization != "none" and not setting.is_cuda:
        return "no GPU"
    if case.quantization != "none" and setting.is_tiny:
        return "toy size: FP8 needs blocks of 128"
    if not case.is_colocated and setting.is_cuda and setting.num_gpus < 2:
        return "not run: needs 2 GPUs, because NCCL refuses two processes on one"
    return None


def _measured(case: Case, setting: Setting) -> Iterator[Line]:
    model = write_shape(setting, case.shape)
    _write_tokenizer(model)
    overrides = [
        "prm.enabled=false",
        f"platform.dtype={'bf16' if setting.is_cuda else 'fp32'}",
        "rollout.engine=sglang",
        f"rollout.sglang.python={setting.sglang_python}",
        f"rollout.sglang.weight_transport={case.transport}",
        f"rollout.sglang.quantization={case.quantization}",
        f"rollout.sglang.colocated={str(case.is_colocated or not setting.is_cuda).lower()}",
        "rollout.sglang.mem_fraction=0.4",
        f"run_dir={setting.folder / f'run {case.name}'}",
    ]
    if setting.is_cuda and not case.is_colocated:
        overrides.append("rollout.sglang.gpu_ids=[1]")
    with roles(setting, model, *overrides, load_weights=False) as built:
        start = time.perf_counter()
        rollout = build_rollout(built.config, built.topology)
        try:
            sync = rollout.sampler.make_weight_sync(built.policy.built)
            sync.push(0)
            yield info(f"{case.name}: server started and first sync", time.perf_counter() - start, "s")
            yield from _sync_times(case.name, sync, built, setting)
            if case.is_colocated:
                yield from _memory(case.name, sync, rollout, built, setting)
            yield _gap(case, rollout, built, setting)
        finally:
            rollout.close()


def _write_tokenizer(model: Path) -> None:
    """Add the toy task's tokenizer: a run needs a tokenizer with a stop token."""
    if not (model / "tokenizer.json").exists():
        from megatron_prime.quickstart.arithmetic_task import VOCABULARY, write_tokenizer

        write_tokenizer(model)
        config = json.loads((model / "config.json").read_text())
        config["eos_token_id"] = len(VOCABULARY) - 2
        (model / "config.json").write_text(json.dumps(config))


def _sync_times(name: str, sync: WeightSync, built: Roles, setting: Setting) -> Iterator[Line]:
    parameters = [parameter.detach() for parameter in built.policy.built.module.parameters()]
    targets = [torch.empty_like(parameter) for parameter in parameters]

    def copy_all() -> None:
        for target, parameter in zip(targets, parameters, strict=True):
            target.copy_(parameter)

    floor = median_seconds(copy_all, setting)
    targets.clear()
    times = []
    for version in (1, 2, 3):
        synchronize(setting)
        start = time.perf_counter()
        sync.push(version)
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[1]
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    note = f"{num_bytes / 2**30:.3g} GiB; a copy on the device takes {floor:.4f} s"
    reached = seconds <= SYNC_FIXED_S + SYNC_GOAL * floor
    yield judged(f"{name}: weight sync", seconds, "s", _goal(), reached, note, setting.why_no_speed)


def _goal() -> str:
    return f"<= {SYNC_FIXED_S} s + {SYNC_GOAL} x a copy on the device"


def _memory(
    name: str, sync: WeightSync, rollout: RolloutParts, built: Roles, setting: Setting
) -> Iterator[Line]:
    """Measure one cycle as in a training step: release, make room, sync."""
    before = _free_bytes(setting)
    rollout.engine.release_memory()
    during = _free_bytes(setting)
    start = time.perf_counter()
    free_memory_for_servers(built.topology)
    sync.push(4)
    yield info(f"{name}: taken back, with a sync", time.perf_counter() - start, "s")
    what = f"{name}: memory released"
    if before is None or during is None:
        yield skipped(
            what, "no GPU: on a CPU SGLang accepts the request and releases nothing", "over half of its 40 %"
        )
        return
    # The server was given 40 % of the GPU (mem_fraction) and should release most of it.
    free, total = during - before, torch.cuda.get_device_properties(0).total_memory
    yield judged(what, free / 2**30, "GiB", "over half of its 40 %", free > 0.2 * total)
    left = _free_bytes(setting)
    yield info(
        f"{name}: free before the release and after taking back",
        f"{before / 2**30:.1f}, {(left or 0) / 2**30:.1f}",
        "GiB",
    )


def _free_bytes(setting: Setting) -> int | None:
    """Return the free memory of the whole GPU, which takes other processes into account."""
    return torch.cuda.mem_get_info()[0] if setting.is_cuda else None


def _gap(case: Case, rollout: RolloutParts, built: Roles, setting: Setting) -> Line:
    """Compare the log-probs that the server reports for its samples to the trainer's for the same tokens."""
    num_tokens = 8 if setting.is_tiny else 128
    # Random prompts suffice: both sides compute log-probs of the same sampled tokens.
    rows = random_sequences(built.policy.built.shape.vocab_size, 16, 32, 1)
    prompts = [Prompt(index, tuple(prompt), "") for index, (prompt, _) in enumerate(rows)]
    rollouts = rollout.engine.generate(prompts, SamplingParams(num_tokens, temperature=1.0), 1, 0)
    sequences = [(found.prompt.token_ids, found.response_ids) for found in rollouts]
    policy_logprobs_BT = built.policy.score(sequences).logprobs_BT
    rollout_logprobs_BT, mask_BT = torch.zeros_like(policy_logprobs_BT), torch.zeros_like(policy_logprobs_BT)
    for row, found in enumerate(rollouts):
        number = len(found.response_ids)
        rollout_logprobs_BT[row, :number] = torch.as_tensor(found.rollout_logprobs)
        mask_BT[row, :number] = 1
    gap = Mismatch.of(policy_logprobs_BT, rollout_logprobs_BT, mask_BT.bool())
    note = f"largest {gap.max:.4g}, {int(mask_BT.sum())} tokens"
    goal = GAP_GOALS[case.quantization]
    return judged(f"{case.name}: mean log-prob gap", gap.mean, "nats", f"<= {goal}", gap.mean <= goal, note)
