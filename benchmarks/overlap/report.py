"""Figures of measured runs, and their tables."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.overlap.lengths import quantiles

WARM_UP = 2
"""Steps that are left out: the first loads code, and in the second the overlap begins."""
QUANTILES = (0.5, 0.9, 0.99, 1.0)
TRAINING = ("logprobs", "prm", "advantage", "policy")
TARGET = 0.85
"""One step off should take at most the longer of sampling and training, divided by this."""


@dataclass(frozen=True)
class Figures:
    """Means over the steps of a run behind the warm-up, without the last, during which nothing is sampled ahead."""

    row: str
    num_steps: int
    step_s: float
    collection_s: float
    """From the begin of the collection of a batch to its end; only the trainer's wait for it with k = 4."""
    first_round_s: float
    """The sampling of the first round; 0 where nothing is sampled in rounds."""
    train_s: float
    trainer_idle: float
    server_idle: float
    """Fraction of the time without a request in flight."""
    in_flight: float
    """Mean number of requests in flight."""
    tokens_per_s: float
    """Tokens of the batches, per second."""
    sampled_tokens_per_s: float
    """Tokens of all answers of the server, per second; responses that were aborted are not counted."""
    mean_tokens: float
    prompts_per_step: float
    """Prompts whose groups were decided."""
    staleness: tuple[float, float]
    """Mean and maximum."""
    lengths: tuple[float, ...]
    """QUANTILES of the answers' tokens; NaN if none ended within the steps."""
    load: float
    """Mean of the machine's load at the begin and the end."""


def figures(record: dict[str, Any]) -> Figures:
    """Return the figures of a run."""
    watched, metrics = record["watched"], record["metrics"]
    begin, end = watched["steps"][WARM_UP][0], watched["steps"][-2][1]
    seconds, steps = end - begin, metrics[WARM_UP:-1]
    requests = [each for each in watched["requests"] if each[1] > begin and each[0] < end]
    inside = [(max(begin, first), min(end, last)) for first, last, _ in requests]
    collections = [last - first for first, last in watched["collections"][WARM_UP:-1]]
    train_s = sum(sum(step.get(f"time/{phase}_s", 0.0) for phase in TRAINING) for step in steps)
    ended = [tokens for _, last, tokens in requests if last <= end and tokens]
    tokens = sum(step["throughput/response_tokens_per_s"] * step["time/step_s"] for step in steps)
    return Figures(
        record["row"],
        len(steps),
        seconds / len(steps),
        statistics.fmean(collections),
        _first_rounds_s(watched),
        train_s / len(steps),
        1 - train_s / seconds,
        1 - covered(inside) / seconds,
        sum(last - first for first, last in inside) / seconds,
        tokens / seconds,
        sum(ended) / seconds,
        statistics.fmean(ended) if ended else math.nan,
        statistics.fmean(step["rollout/num_prompts_sampled"] for step in steps),
        (
            statistics.fmean(step.get("rollout/staleness_mean", 0.0) for step in steps),
            max(step.get("rollout/staleness_max", 0.0) for step in steps),
        ),
        tuple(quantiles(ended, QUANTILES)) if ended else (math.nan,) * len(QUANTILES),
        statistics.fmean(record["load"]),
    )


def figures_of(record: dict[str, Any]) -> Figures:
    """Return figures from their record, in which tuples have become lists."""
    return Figures(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans."""
    total, until = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, until))
        until = max(until, last)
    return total


def _first_rounds_s(watched: dict[str, Any]) -> float:
    """Return the mean time of the first round of a collection, or 0."""
    firsts = []
    for first, last in watched["collections"][WARM_UP:-1]:
        firsts += [end - begin for begin, end in watched["rounds"] if first <= begin and end <= last][:1]
    return statistics.fmean(firsts) if firsts else 0.0


def mean(runs: Sequence[Figures]) -> Figures:
    """Return the means of several runs of one row."""

    def average(values: Sequence[Any]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(average(each) for each in zip(*values, strict=True))
        return values[0] if isinstance(values[0], str) else statistics.fmean(values)

    return Figures(*(average([getattr(run, name) for run in runs]) for name in Figures.__dataclass_fields__))


def table(rows: Sequence[Figures]) -> str:
    """Return the rows as a table; the last column compares with the first row."""
    lines = [
        "| schedule | step s | collection s | training s | trainer idle | server idle | in flight | tokens/s trained | "
        "tokens/s sampled | prompts per step | mean tokens | staleness mean (max) | load | speed |",
        "|---" * 14 + "|",
    ]
    lines += [
        f"| {row.row} | {row.step_s:.2f} | {row.collection_s:.2f} | {row.train_s:.2f} | {row.trainer_idle:.0%} | "
        f"{row.server_idle:.0%} | {row.in_flight:.1f} | {row.tokens_per_s:.0f} | {row.sampled_tokens_per_s:.0f} | "
        f"{row.prompts_per_step:.0f} | {row.mean_tokens:.1f} | {row.staleness[0]:.2f} ({row.staleness[1]:.0f}) | "
        f"{row.load:.1f} | {rows[0].step_s / row.step_s:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _waits_s(figures: Figures) -> float:
    """Return the time within a collection in which the server has no request, if it has none outside of it."""
    return figures.server_idle * figures.step_s - (figures.step_s - figures.collection_s)


def goals(rows: Sequence[Figures]) -> str:
    """Return the goals that the rows reach or miss, where they have what is needed."""
    by_name = {row.row: row for row in rows}
    rounds, streaming, ahead = (by_name.get(name) for name in ("rounds", "streaming", "one step off"))
    lines = []
    if rounds and streaming:
        before, after = _waits_s(rounds), _waits_s(streaming)
        waits, left = (each.collection_s - rounds.first_round_s for each in (rounds, streaming))
        lines.append(
            f"- Waits for verifiers: in a collection the server has no request for {before:.2f} s with rounds and for "
            f"{after:.2f} s with streaming, which removes {1 - after / before:.0%} (goal: 80 %)."
        )
        lines.append(
            f"- Further rounds: a collection in rounds takes {rounds.collection_s:.2f} s, its first round samples for "
            f"{rounds.first_round_s:.2f} s. Streaming leaves {left:.2f} of the {waits:.2f} s behind it and removes "
            f"{1 - left / waits:.0%} (goal: 80 %)."
        )
    if streaming and ahead:
        longer = max(streaming.collection_s, streaming.train_s)
        share = longer / ahead.step_s
        lines.append(
            f"- One step off: a step takes {ahead.step_s:.2f} s. The longer of sampling "
            f"({streaming.collection_s:.2f} s) "
            f"and training ({streaming.train_s:.2f} s) in turn is {share:.0%} of it (goal: {TARGET:.0%})."
        )
    return "\n".join(lines)
