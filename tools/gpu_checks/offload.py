"""Offloading to host memory and back: bit-identical contents, bandwidth, and overlap with compute."""

import time
from collections.abc import Iterator

import torch

from megatron_prime.training.trainable import Scorer
from tools.gpu_checks.lines import Line, Setting, info, judged
from tools.gpu_checks.machine import synchronize
from tools.gpu_checks.roles import Roles, plain_loss, random_sequences, roles, write_shape

OFFLOADED = (
    "memory.offload_reference=true",
    "memory.offload_prm=true",
    "memory.offload_policy_optimizer=true",
)


def offload(setting: Setting) -> Iterator[Line]:
    """Offload and restore each role's parts: compare the bits, measure bandwidth and overlap with compute."""
    model = write_shape(setting, "qwen2.5-0.5b", with_weights=True)
    with roles(setting, model, "platform.dtype=bf16", *OFFLOADED) as built:
        vocab_size = built.policy.built.shape.vocab_size
        sequences = random_sequences(vocab_size, 4, 16, 48 if setting.is_tiny else 240)
        for role in (built.policy, built.prm):
            role.update(sequences, range(len(sequences)), plain_loss)  # creates the optimizer's moments
        for name, role in (("policy", built.policy), ("prm", built.prm), ("reference", built.reference)):
            yield from _there_and_back(name, role, setting)
        yield from _beside_compute(built, setting)


def _there_and_back(name: str, role: Scorer, setting: Setting) -> Iterator[Line]:
    """Offload a role twice: the first time includes allocating and pinning host memory, the second is measured."""
    residency, parts = role.residency, role._parts()
    # Gradients are dropped when they are offloaded and restored as zeros, so there is nothing to compare.
    kept = [part for part in parts if parts[part].content != "dropped" and part in residency._offloaded]
    with residency.hold():
        before = [tensor.clone().cpu() for part in kept for tensor in parts[part].tensors()]
        num_bytes = sum(residency.bytes_of(part) for part in kept)
    residency.park()
    synchronize(setting)
    away = sum(residency.bytes_of(part) for part in kept)
    yield judged(f"{name}: bytes on the device while offloaded", away, "", "0", away == 0)
    start = time.perf_counter()
    with residency.hold():
        synchronize(setting)
        returned = time.perf_counter() - start
        after = [tensor.cpu() for part in kept for tensor in parts[part].tensors()]
        is_same = len(before) == len(after) and all(map(same_bits, before, after))
        synchronize(setting)
        start = time.perf_counter()
    synchronize(setting)
    left = time.perf_counter() - start
    yield judged(f"{name}: {len(after)} tensors restored, bit for bit", float(is_same), "", "1", is_same)
    yield info(f"{name}: restoring", num_bytes / returned / 1e9, "GB/s", f"{num_bytes / 2**30:.3g} GiB")
    if name != "reference":  # its weights never change, so nothing is copied the second time
        yield info(f"{name}: offloading", num_bytes / left / 1e9, "GB/s")


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits: NaN equals itself, and +0 differs from -0."""
    # Comparing bytes, because `torch.equal` on floats treats NaN as unequal and -0 as equal to +0.
    return left.shape == right.shape and torch.equal(
        left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)
    )


def _beside_compute(built: Roles, setting: Setting) -> Iterator[Line]:
    """Compare offloading the PRM beside matrix products to doing one after the other."""
    size = 4096 if setting.is_cuda and not setting.is_tiny else 64
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=setting.device)
    repeats = 1000 if setting.is_cuda and not setting.is_tiny else 1

    def compute() -> None:
        for _ in range(repeats):
            matrix @ matrix

    def seconds(offloads: bool, computes: bool) -> float:
        built.prm.residency._restore("weights")
        built.prm.residency._restore("optimizer")
        synchronize(setting)
        start = time.perf_counter()
        if offloads:
            built.prm.residency.park()
        if computes:
            compute()
        synchronize(setting)
        return time.perf_counter() - start

    seconds(True, True)  # warm-up
    alone, computing, both = seconds(True, False), seconds(False, True), seconds(True, True)
    hidden = (alone + computing - both) / min(alone, computing)
    what = "share of the shorter of offloading and computing that is hidden by the other"
    note = f"offloading {alone:.3f} s, computing {computing:.3f} s, both {both:.3f} s"
    yield judged(what, hidden, "", ">= 0.7", hidden >= 0.7, note, setting.why_no_speed)
