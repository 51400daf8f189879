"""Every check by name: where its code is, what it needs, how long it may take."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from tools.gpu_checks.lines import Line, Setting, has_package


@dataclass(frozen=True)
class Check:
    """One check; it runs in a process of its own."""

    name: str
    place: str
    """module:function below gpu_checks."""
    says: str
    deadline_s: float
    """On one H100; then it is killed, and what it has said until then stands."""
    needs: str = ""
    """Beyond a GPU; what is missing is skipped and said."""

    def load(self) -> Callable[[Setting], Iterator[Line]]:
        """Its function. Imports torch and Megatron."""
        module, _, function = self.place.partition(":")
        return cast(
            Callable[[Setting], Iterator[Line]],
            getattr(importlib.import_module(f"gpu_checks.{module}"), function),
        )

    def why_not(self, setting: Setting) -> str | None:
        """Why none of it can be done here."""
        if self.name == "sglang":
            if setting.sglang_python is None:
                return "no SGLang: give --sglang-python, or MEGATRON_PRIME_SGLANG_PYTHON"
            if not setting.sglang_python.is_file():
                return f"no interpreter at {setting.sglang_python}"
        if self.name == "kernels" and setting.is_cuda and not has_package("triton"):
            return "triton is not installed"
        return None


CHECKS = (
    Check("environment", "machine:environment", "versions, GPU, copy bandwidth, speed of a bf16 product", 90),
    Check(
        "zero",
        "precision:zero_rewards",
        "process rewards exactly 0 at step 0, in bf16 and FP8",
        150,
        "TE for FP8",
    ),
    Check("parity", "precision:parity", "SFT and PRM losses of 100 steps beside fp32's", 300, "TE for FP8"),
    Check(
        "kernels", "kernels:logprob_kernels", "log-prob kernels: float64, time over the floor", 150, "triton"
    ),
    Check(
        "step-1.5b",
        "speed:step_1_5b",
        "a training step of Qwen2.5-1.5B: MFU, FP8 over bf16",
        180,
        "TE for FP8",
    ),
    Check("step-3b", "speed:step_3b", "the same of Llama-3.2-3B", 240, "TE for FP8; 80 GB"),
    Check("memory", "speed:memory", "memory of an update beside `plan`", 150, "TE for its layers"),
    Check("offload", "offload:offload", "offloaded parts: the same bits, GB/s, beside compute", 120),
    Check("run", "runs:prime_run", "a whole PRIME run of the quickstart's task: accuracy rises", 420),
    Check(
        "sglang", "serving:serving", "a colocated server: sync, memory, log-prob gap", 300, "SGLang's Python"
    ),
)
"""In this order; the whole is meant to take under twenty minutes, the deadlines are what one may take at worst."""


def chosen(names: list[str]) -> tuple[Check, ...]:
    """The checks of these names, all of them for none. Raises ValueError for a name that is not known."""
    by_name = {check.name: check for check in CHECKS}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"no check {', '.join(unknown)}; there are {', '.join(by_name)}")
    return tuple(check for check in CHECKS if not names or check.name in names)
