"""Metrics of one step under stable names, phase timers, and the memory of a process.

A name has the form `group/quantity`; counts start with `num_` and units are suffixes (`_s`, `_gib`). NAMES documents
every name that the project logs, so that renaming a metric is visible there.
"""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from megatron_prime.observability import heartbeat

NAMES: Mapping[str, str] = {
    "rollout/accuracy_sampled": "Mean outcome reward of all responses sampled for the step, before the filter and "
    "without verifier errors, in [0, 1]: the number that measures progress.",
    "rollout/accuracy_batch": "Mean outcome reward of the responses in the training batch, in [0, 1]. The filter "
    "chooses groups of medium accuracy, so it hardly changes during a run.",
    "rollout/accuracy_by_source/*": "Mean outcome reward of all responses sampled from one data source, in [0, 1].",
    "rollout/mean_response_tokens": "Mean length of the responses in tokens.",
    "rollout/truncated_fraction": "Fraction of all sampled responses that were truncated at "
    "rollout.max_response_tokens.",
    "rollout/policy_version": "Number of weight syncs before the weights that sampled the batch (the minimum over it).",
    "rollout/num_*": "Counts of the collection of a step: sampling rounds, prompts, responses, groups by result of the "
    "filter, and verifier errors.",
    "rollout/logprob_gap*": "Absolute difference between the log-probabilities of the training engine and of the "
    "rollout engine, in nats per response token: the mean, and the maximum (`_max`).",
    "prompts/*": "Statistics of the training prompts sampled so far: how many, how often on average, and the fractions "
    "whose responses were always right or always wrong.",
    "prm/pair_accuracy": "Fraction of the pairs of a right and a wrong response to one prompt in which the right one "
    "has the larger sum of process rewards: 0.5 is chance, and below it the PRM pays for wrong responses.",
    "prm/*": "Update of the process reward model: loss, accuracies in [0, 1], gradient norm, learning rate, and the "
    "mean and the largest magnitude of the process rewards.",
    "policy/ref_kl": "KL divergence of the policy from the reference in nats per response token "
    "(policy.kl_estimator), averaged over the minibatches.",
    "policy/approx_kl": "Estimate of the KL divergence of the policy from the weights that began the step, in nats per "
    "response token: the size of the step's update.",
    "policy/entropy": "Entropy of the policy's next-token distribution in nats, averaged over response tokens.",
    "policy/*": "Update of the policy, averaged over its minibatches: losses, fraction of clipped tokens, KL "
    "divergence in nats per token, gradient norm, and learning rate.",
    "advantage/process_share": "Share of the process rewards in the advantages, in [0, 1]: the standard deviation of "
    "their part over the sum of the standard deviations of both parts.",
    "advantage/*": "Mean and standard deviation of the advantages over all response tokens.",
    "eval/loss": "Loss on the held-out demonstrations of supervised fine-tuning, in nats per response token.",
    "eval/*": "Results on held-out prompts, and of each benchmark in eval/<name>/*: accuracy (avg@k) and pass_at_k in "
    "[0, 1] with their confidence intervals (*_ci_low, *_ci_high), counts, lengths in tokens, and accuracy by data "
    "source. benchmark_average is the mean accuracy over the benchmarks.",
    "prm_eval/*": "Results of the command eval-prm: accuracy of each method of choosing among N responses, "
    "ProcessBench scores, and accuracy on pairs, all in [0, 1].",
    "guards/*": "Number of updates skipped in the step and in the whole run, and alarms (1 while an alarm is raised).",
    "sft/*": "Supervised fine-tuning: loss in nats per token, gradient norm, learning rate, and number of tokens.",
    "throughput/*": "Response tokens per second over the whole job.",
    "time/*": "Seconds of each phase of a step, and of the whole step (time/step_s).",
    "memory/*": "Memory in GiB: of this process (rss, peak_rss), of its device, the maximum that the weights, "
    "gradients and optimizer states of a role took in a phase (memory/<phase>/<role>_gib), and the "
    "copies of offloaded parts in host memory (host_copies_gib).",
}
"""Name of a metric, or prefix ending in `*`, -> description with unit."""


def description_of(name: str) -> str:
    """Return the description of a metric from NAMES, by the longest name that covers it; "" for an unknown one."""
    if name in NAMES:
        return NAMES[name]
    prefixes = [pattern for pattern in NAMES if pattern.endswith("*") and name.startswith(pattern[:-1])]
    return NAMES[max(prefixes, key=len)] if prefixes else ""


# The part after the group may contain the name of a data source, which the user chooses freely.
_VALID_NAME = re.compile(r"[a-z0-9_]+/\S[^\n]*")
GIB = 1024.0**3
"""Number of bytes in a GiB."""


class Metrics(MutableMapping[str, float]):
    """The scalars of one step in insertion order; values are converted to float.

    Raises:
        ValueError: On setting a name that is not of the form `group/quantity`.
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
        """Add the seconds spent in the block to `time/<phase>_s`, even if the block raises.

        Args:
            phase: Name of the phase, which is also that of the heartbeat.
            synchronize: Called at both ends; needed for devices that execute asynchronously.
        """
        if synchronize is not None:
            synchronize()  # otherwise work queued by the phase before would count for this one
        start = time.perf_counter()
        try:
            with heartbeat.phase(phase):
                yield
        finally:
            if synchronize is not None:
                synchronize()
            name = f"time/{phase}_s"
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this program in bytes."""
    try:
        # getrusage would include the memory of the parent at the time of the fork.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        # macOS has no /proc, and its ru_maxrss is in bytes, where Linux has KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def process_memory(device_memory: Callable[[], Mapping[str, float]] | None = None) -> dict[str, float]:
    """Return the memory metrics of this process in GiB.

    Args:
        device_memory: Returns the statistics of the device in bytes by name (`allocated`, `peak_allocated`, ...). It
            is passed in because only the platform layer accesses a device.
    """
    memory = {"rss": psutil.Process().memory_info().rss, "peak_rss": peak_resident_bytes()}
    device = {f"device_{name}": size for name, size in device_memory().items()} if device_memory else {}
    return {f"memory/{name}_gib": size / GIB for name, size in {**memory, **device}.items()}
