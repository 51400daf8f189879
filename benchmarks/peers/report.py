"""docs/performance.md and its plots, from the records of the runs."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.bars import ranged_bars
from benchmarks.peers.task import GROUP_SIZE, WORKLOADS
from benchmarks.peers.trainers import REFERENCE

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/peers.jsonl"
PAGE = ROOT / "docs/performance.md"
PLOT = ROOT / "docs/images/performance_peers.svg"
DECODING_PLOT = ROOT / "docs/images/performance_decoding.svg"
TEMPLATE = Path(__file__).with_name("template.md")
DECODING_BASE = "transformers dynamic"
Record = dict[str, Any]


def write_report() -> None:
    """Write the page and its plots."""
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    steps = [record for record in records if "workload" in record]
    decoding = [record for record in records if "decoding" in record]
    page = TEMPLATE.read_text().replace("{tables}", "\n".join(_table(name, steps) for name in WORKLOADS))
    PAGE.write_text(page.replace("{decoding}", _decoding_table(decoding)))
    PLOT.write_text(_plot(steps))
    DECODING_PLOT.write_text(_decoding_plot(decoding))


def _grouped(records: list[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Return the records by a key, in the order in which keys first appear."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _ratios(runs: list[Record], base: list[Record], rate: Callable[[Record], float]) -> list[float]:
    """Return the ratio of each round; a round that was cut off has no base, and counts for nothing."""
    return [rate(run) / rate(other) for run, other in zip(runs, base, strict=False)]


def _plot(records: list[Record]) -> str:
    """Return bars of whole steps: the median ratio of each trainer and workload to the reference."""
    bars = []
    for (workload, trainer), runs in _grouped(
        records, lambda each: (each["workload"], each["trainer"])
    ).items():
        base = [each for each in records if (each["workload"], each["trainer"]) == (workload, REFERENCE)]
        ratios = _ratios(runs, base, cpu_rate)
        bars.append((f"{workload}, {trainer}", min(ratios), statistics.median(ratios), max(ratios)))
    return ranged_bars("Whole steps: tokens per CPU second, relative to TRL RLOO", bars)


def _title(name: str) -> str:
    """Return the heading of a workload."""
    workload = WORKLOADS[name]
    lengths = (
        f"of {workload.max_response_tokens} tokens each"
        if workload.has_equal_lengths
        else f"of about {workload.mean_response_tokens} tokens, at most {workload.max_response_tokens}"
    )
    processes = f", {workload.num_processes} processes" * (workload.num_processes > 1)
    size = name.partition("-")[0]
    return f"{size} parameters, {workload.prompts_per_step} prompts x {GROUP_SIZE} responses {lengths}{processes}"


def _table(name: str, records: list[Record]) -> str:
    """Return the table of a workload: medians over rounds, and the range of the ratios of rounds."""
    own = [record for record in records if record["workload"] == name]
    if not own:
        return f"### {_title(name)}\n\nNot measured.\n"
    by_trainer = _grouped(own, lambda each: each["trainer"])
    base = by_trainer[REFERENCE]
    lines = [
        f"### {_title(name)}, {len(base)} round{'s' * (len(base) > 1)}\n",
        "| trainer | whole step, tokens/s | x TRL RLOO, wall | x TRL RLOO, CPU | sampling, x TRL | training, x TRL "
        "| peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for trainer, runs in by_trainer.items():
        ratios = [_spread(_ratios(runs, base, rate)) for rate in RATES]
        tokens = statistics.median(step_rate(run) for run in runs)
        # Early runs of ours measured the checkpoint at their end too, and have no figure any more.
        peak = statistics.median(run["peak_mb"] for run in runs if "peak_mb" in run)
        lines.append(f"| {trainer} | {tokens:,.0f} | {' | '.join(ratios)} | {peak:,.0f} |")
    return "\n".join([*lines, "", _load(own), ""])


def _load(records: list[Record]) -> str:
    loads = [record["load"] for record in records]
    return f"Load of the machine (two cores): {min(loads):.1f} to {max(loads):.1f}."


def _decoding_rate(record: Record) -> float:
    return record["tokens"] / record["seconds"]


def _decoding_cpu_rate(record: Record) -> float:
    return record["tokens"] / record["cpu_s"]


def _decoding_groups(records: list[Record]) -> list[tuple[tuple[str, int, str], list[Record], list[Record]]]:
    """Return (size, batch size, method), its records and those of the base, for each measured row."""
    groups = _grouped(records, lambda each: (each["decoding"], each["batch_size"], each["method"]))
    return [(key, runs, groups[*key[:2], DECODING_BASE]) for key, runs in groups.items()]


def _decoding_table(records: list[Record]) -> str:
    """Return the table of decoding alone: medians over rounds, and the range of the ratios of rounds."""
    if not records:
        return "Not measured.\n"
    lines = [
        "| model | requests | method | tokens/s | x dynamic, wall | x dynamic, CPU | equal responses |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (size, batch_size, method), runs, base in _decoding_groups(records):
        ratios = [_spread(_ratios(runs, base, rate)) for rate in (_decoding_rate, _decoding_cpu_rate)]
        tokens = statistics.median(map(_decoding_rate, runs))
        equal = statistics.median(run["equal"] for run in runs)
        lines.append(
            f"| {size} | {batch_size} | {method} | {tokens:,.0f} | {' | '.join(ratios)} | {equal:.0%} |"
        )
    return "\n".join([*lines, "", _load(records), ""])


def _decoding_plot(records: list[Record]) -> str:
    bars = []
    for (size, batch_size, method), runs, base in _decoding_groups(records):
        ratios = _ratios(runs, base, _decoding_cpu_rate)
        bars.append((f"{size} x {batch_size}, {method}", min(ratios), statistics.median(ratios), max(ratios)))
    return ranged_bars("Decoding: tokens per CPU second, relative to transformers' dynamic cache", bars)


def _spread(ratios: list[float]) -> str:
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _tokens(run: Record) -> float:
    return sum(step["sampled_tokens"] for step in run["steps"])


def step_rate(run: Record) -> float:
    """Return response tokens per second of whole steps."""
    return _tokens(run) / sum(step["step_s"] for step in run["steps"])


def cpu_rate(run: Record) -> float:
    """Return response tokens per CPU second of the training process."""
    return _tokens(run) / sum(step["cpu_s"] for step in run["steps"])


def sampling_rate(run: Record) -> float:
    """Return response tokens per second of sampling."""
    return _tokens(run) / sum(step["sampling_s"] for step in run["steps"])


def training_rate(run: Record) -> float:
    """Return response tokens per second of all that is not sampling."""
    return _tokens(run) / sum(step["step_s"] - step["sampling_s"] for step in run["steps"])


RATES = (step_rate, cpu_rate, sampling_rate, training_rate)
