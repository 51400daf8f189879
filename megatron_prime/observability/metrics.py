"""Scalars of one step under stable names, phase timers, and the memory of a process.

A name is `group/quantity`, with counts spelled `num_*` and units at the end (`_s`, `_gib`). NAMES documents
every name that the project logs, so that a rename shows up as a diff there.
"""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from megatron_prime.observability import heartbeat

NAMES: Mapping[str, str] = {
    "rollout/outcome_reward": "mean verified outcome of the responses trained on, in [0, 1]",
    "rollout/accuracy": "mean outcome of the batch; verifier errors left out",
    "rollout/accuracy_before_filter": "mean outcome of every response sampled for the step",
    "rollout/accuracy_by_source/*": "mean outcome of one data source, over every response sampled",
    "rollout/mean_response_tokens": "mean response length",
    "rollout/truncated_fraction": "share of responses that reached rollout.max_response_tokens",
    "rollout/policy_version": "weight syncs behind the weights that sampled the batch",
    "rollout/num_*": "counts of the collection: rounds, prompts, groups by verdict, verifier errors",
    "rollout/logprob_gap*": "mean (or max) |old - rollout| log-prob over response tokens, in nats; 1 while it alarms",
    "prompts/*": "training prompts sampled so far: how many, how often on average, shares always right or always wrong",
    "prm/*": "PRM update: loss, accuracies, grad_norm, lr; process rewards' mean and largest size",
    "policy/*": "policy update, mean over its minibatches: losses, clip and KL figures, grad_norm, lr",
    "advantage/*": "mean and std of the advantages over response tokens",
    "eval/*": "held-out prompts, and eval/<name>/* of benchmarks: accuracy (avg@k), pass_at_k, their confidence "
    "intervals (*_ci_low, *_ci_high), counts, lengths, accuracy by source; benchmark_average",
    "prm_eval/*": "eval-prm: outcome by way of choosing among N responses, ProcessBench, accuracy on pairs",
    "guards/*": "updates skipped in the step and in all; alarms (1 while they last)",
    "sft/*": "supervised warm-up: loss, grad_norm, lr, tokens",
    "throughput/*": "response tokens a second, over the whole job",
    "time/*": "seconds of each phase of a step, and of the whole step (time/step_s)",
    "memory/*": "GiB of this process (rss, peak_rss) and of its device; memory/<phase>/<role>_gib: the most that the "
    "role's weights, gradients and optimizer states took in the phase; host_copies_gib: what is offloaded",
}
"""Name, or prefix ending in `*`, -> meaning and unit."""

# What follows the group may hold the name of a data source, which is the user's to choose.
_VALID_NAME = re.compile(r"[a-z0-9_]+/\S[^\n]*")
GIB = 1024.0**3
"""Bytes."""


class Metrics(MutableMapping[str, float]):
    """The scalars of one step, in the order of their first setting; values are converted to float.

    Raises ValueError for a name that is not of the form `group/quantity`.
    """

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self._values: dict[str, float] = {}
        self.update(values or {})

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __setitem__(self, name: str, value: float) -> None:
        if not _VALID_NAME.fullmatch(name):
            raise ValueError(f"metric {name!r} is not of the form group/quantity")
        self._values[name] = float(value)

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metrics({self._values})"

    def add(self, group: str, values: Mapping[str, float]) -> None:
        """Set every `group/name` of `values`."""
        self.update({f"{group}/{name}": value for name, value in values.items()})

    @contextmanager
    def timed(self, phase: str, synchronize: Callable[[], None] | None = None) -> Iterator[None]:
        """Add the seconds spent in the block to `time/<phase>_s`, also when the block raises.

        `synchronize` is called at both ends, for devices that run ahead of the program.
        """
        if synchronize is not None:
            synchronize()
        start = time.perf_counter()
        try:
            with heartbeat.phase(phase):
                yield
        finally:
            if synchronize is not None:
                synchronize()
            name = f"time/{phase}_s"
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


def undocumented(names: Iterable[str]) -> list[str]:
    """The names that NAMES does not cover."""
    return sorted(name for name in names if not any(_covers(pattern, name) for pattern in NAMES))


def peak_resident_bytes() -> int:
    """Most memory that this program ever held in RAM."""
    try:
        # getrusage would count what the parent held when it started this process.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        # macOS has no /proc, and reports bytes where Linux reports kibibytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def process_memory(device_memory: Callable[[], Mapping[str, float]] | None = None) -> dict[str, float]:
    """Memory metrics of this process in GiB.

    `device_memory` returns the device's own numbers in bytes by name (`allocated`, `peak_allocated`...); it
    is passed in because only the platform layer touches a device.
    """
    memory = {"rss": psutil.Process().memory_info().rss, "peak_rss": peak_resident_bytes()}
    device = {f"device_{name}": size for name, size in device_memory().items()} if device_memory else {}
    return {f"memory/{name}_gib": size / GIB for name, size in {**memory, **device}.items()}


def _covers(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
