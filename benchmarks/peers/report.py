"""docs/performance.md and its plot, from the records of the runs."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.bars import ranged_bars
from benchmarks.peers.task import MEAN_RESPONSE_TOKENS, SIZES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/peers.jsonl"
PAGE = ROOT / "docs/performance.md"
PLOT = ROOT / "docs/images/performance_peers.svg"
TEMPLATE = Path(__file__).with_name("template.md")
REFERENCE = "TRL RLOO"
Record = dict[str, Any]


def write_report() -> None:
    """Write the page and its plot."""
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    PAGE.write_text(
        TEMPLATE.read_text().replace("{tables}", "\n".join(_table(size, records) for size in SIZES))
    )
    PLOT.write_text(_plot(records))


def _by_trainer(records: list[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["trainer"], []).append(record)
    return found


def _plot(records: list[Record]) -> str:
    """Return bars of whole steps: the median ratio of each trainer and size to the reference."""
    bars = []
    for size in SIZES:
        by_trainer = _by_trainer([record for record in records if record["size"] == size])
        for trainer, runs in by_trainer.items():
            base = by_trainer[REFERENCE]
            ratios = [step_rate(run) / step_rate(other) for run, other in zip(runs, base, strict=False)]
            bars.append((f"{size}, {trainer}", min(ratios), statistics.median(ratios), max(ratios)))
    return ranged_bars("Whole steps: tokens per second, relative to TRL RLOO", bars)


def _table(size: str, records: list[Record]) -> str:
    """Return the table of a size: medians over rounds, and the range of the ratios of rounds."""
    own = [record for record in records if record["size"] == size]
    if not own:
        return f"## {size}\n\nNot measured.\n"
    by_trainer = _by_trainer(own)
    rounds = len(by_trainer[REFERENCE])
    lines = [
        f"## {size} parameters, {SIZES[size].prompts_per_step} prompts x 4 responses of about "
        f"{MEAN_RESPONSE_TOKENS} tokens, {rounds} round{'s' * (rounds > 1)}\n",
        "| trainer | whole step, tokens/s | x TRL RLOO, wall | x TRL RLOO, CPU | sampling, x TRL | training, x TRL "
        "| peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = by_trainer[REFERENCE]
    for trainer, runs in by_trainer.items():
        ratios = [
            _spread([rate(run) / rate(other) for run, other in zip(runs, base, strict=False)])
            for rate in RATES
        ]
        tokens = statistics.median(step_rate(run) for run in runs)
        peak = statistics.median(run["peak_mb"] for run in runs)
        lines.append(f"| {trainer} | {tokens:,.0f} | {' | '.join(ratios)} | {peak:,.0f} |")
    loads = [record["load"] for record in own]
    return "\n".join(
        [*lines, "", f"Load of the machine (two cores): {min(loads):.1f} to {max(loads):.1f}.", ""]
    )


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
