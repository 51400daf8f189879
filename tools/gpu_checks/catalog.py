"""The list of checks: the function of each, what it needs, and its deadline."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from tools.gpu_checks.lines import Line, Setting, has_package


@dataclass(frozen=True)
class Check:
    """A check, which runs in a separate process."""

    name: str
    function: str
    """Its code, as module:function below `tools.gpu_checks`."""
    description: str
    expected_s: float
    """Time that it should take on one H100, by estimate: `--minutes` begins no check for which less is left."""
    deadline_s: float
    """Time on one H100 after which it is killed; the lines it has written until then are kept."""
    needs: str = ""
    """Requirements beyond a GPU. Lines whose requirement is missing are skipped with a note."""
    num_gpus: int = 1
    """Number of GPUs without which it measures nothing."""

    def load(self) -> Callable[[Setting], Iterator[Line]]:
        """Import and return its function. Imports torch and Megatron."""
        module, _, function = self.function.partition(":")
        return cast(
            Callable[[Setting], Iterator[Line]],
            getattr(importlib.import_module(f"tools.gpu_checks.{module}"), function),
        )

    def reason_to_skip(self, setting: Setting) -> str | None:
        """Return why the whole check cannot run on this machine, or None."""
        if setting.num_gpus < self.num_gpus:
            return f"not run: needs {self.num_gpus} GPUs, this machine has {setting.num_gpus}"
        if self.needs == SGLANG:
            if setting.sglang_python is None:
                return "no SGLang: pass --sglang-python, or set MEGATRON_PRIME_SGLANG_PYTHON"
            if not setting.sglang_python.is_file():
                return f"no interpreter at {setting.sglang_python}"
        if self.name == "kernels" and setting.is_cuda and not has_package("triton"):
            return "triton is not installed"
        return None


SGLANG = "SGLang's Python"
CHECKS = (
    Check(
        "environment", "machine:environment", "versions, GPU, copy bandwidth, speed of a bf16 product", 30, 90
    ),
    Check(
        "kernels",
        "kernels:logprob_kernels",
        "log-prob kernels: error against float64, time relative to a copy",
        60,
        150,
        "triton",
    ),
    Check(
        "sharing",
        "sharing:sharing",
        "two processes on a GPU: mapped memory, and kernels beside one that spins",
        45,
        120,
    ),
    Check(
        "zero",
        "precision:zero_rewards",
        "process rewards exactly 0 at step 0, in bf16 and FP8",
        90,
        150,
        "TE for FP8",
    ),
    Check(
        "parity",
        "precision:parity",
        "SFT and PRM losses of 100 steps compared to fp32",
        120,
        300,
        "TE for FP8",
    ),
    Check(
        "step-1.5b",
        "speed:step_1_5b",
        "a training step of Qwen2.5-1.5B: MFU, speed of FP8 relative to bf16",
        90,
        180,
        "TE for FP8",
    ),
    Check(
        "offload", "offload:offload", "offloading: bit-identical parts, GB/s, overlap with compute", 45, 120
    ),
    Check("memory", "speed:memory", "memory of an update compared to `plan`", 60, 150, "TE for its layers"),
    Check(
        "checkpoint",
        "checkpoints:checkpoint",
        "saving and loading: memory on GPU and host, the next update after a load",
        60,
        150,
    ),
    Check(
        "ranks",
        "ranks:ranks",
        "several GPUs: layouts compared to one GPU, objects over gloo, shapes of pipeline messages",
        120,
        300,
        num_gpus=2,
    ),
    Check(
        "watchdog",
        "ranks:watchdog",
        "several GPUs: a rank that does not arrive is named in time",
        45,
        90,
        num_gpus=2,
    ),
    Check(
        "colocated-run",
        "colocated_run:colocated_run",
        "a run with a server on its GPU: start, checkpoints, a server killed in training",
        180,
        420,
        SGLANG,
    ),
    Check(
        "sglang",
        "serving:serving",
        "servers: sync, memory, log-prob gap, FP8, shards",
        240,
        600,
        SGLANG,
    ),
    Check("run", "runs:prime_run", "a complete PRIME run on the task `arithmetic`: accuracy rises", 240, 420),
    Check(
        "step-3b",
        "speed:step_3b",
        "a training step of Llama-3.2-3B, likewise",
        120,
        240,
        "TE for FP8; 80 GB",
    ),
)
"""All checks, in the order they run: the more one learns in a minute, the earlier. The deadlines are upper bounds."""


def chosen(names: list[str]) -> tuple[Check, ...]:
    """Return the named checks, or all checks if no name is given. Raises ValueError for an unknown name."""
    by_name = {check.name: check for check in CHECKS}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"unknown check {', '.join(unknown)}; the checks are {', '.join(by_name)}")
    return tuple(check for check in CHECKS if not names or check.name in names)
