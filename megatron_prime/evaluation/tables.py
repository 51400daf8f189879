"""Tables that the evaluation commands print."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from megatron_prime.config.tables.evaluation import EvaluationConfig
from megatron_prime.evaluation.accuracy import EvaluationReport, EvaluationResult
from megatron_prime.evaluation.evaluator import EvaluationSet
from megatron_prime.evaluation.prm_report import PRMReport


def summary_table(
    model: Path, settings: EvaluationConfig, sets: Sequence[EvaluationSet], report: EvaluationReport
) -> Table:
    """Return one row per prompt set: its size, and avg@k and pass@k in percent with their intervals."""
    table = Table("set", "n x k", "T", "avg@k, %", "pass@k, %", "cut, %", "err", box=None, pad_edge=False)
    level = f", {settings.confidence:.0%} intervals" if settings.num_resamples else ""
    table.title = f"{model}{level}"
    for prompts in sets:
        result = report.results[prompts.name]
        k = result.samples_per_prompt
        table.add_row(
            prompts.name or "held-out",
            f"{result.num_prompts} x {k}",
            f"{prompts.sampling.temperature:g}",
            _percent(result.accuracy, result.intervals.get("accuracy")),
            _percent(result.pass_at_k[k], result.intervals.get(f"pass_at_{k}")),
            _percent(result.truncated_fraction, None),
            str(result.num_verifier_errors),
        )
    # The mean of a single benchmark would repeat its row.
    if sum(bool(prompts.name) for prompts in sets) > 1:
        table.add_row("mean", "", "", _percent(report.benchmark_average, None), "", "", "")
    return table


def metrics_table(model: Path, settings: EvaluationConfig, result: EvaluationResult) -> Table:
    """Return one row per metric of the held-out prompts."""
    table = Table("metric", "value", title=f"{model}, temperature {settings.temperature}")
    for name, value in result.metrics().items():
        table.add_row(name, f"{value:g}" if name.startswith("num") else f"{value:.4f}")
    return table


def prm_table(model: Path, settings: EvaluationConfig, report: PRMReport) -> Table:
    """Return one row per metric of a PRM, with its confidence interval where it has one."""
    table = Table("metric", "value", f"{settings.confidence:.0%} interval", title=f"PRM {model}")
    for name, value in report.metrics.items():
        bounds = report.intervals.get(name)
        shown = f"{value:g}" if "num_" in name else f"{value:.4f}"
        table.add_row(name, shown, "" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]")
    return table


def _percent(value: float, bounds: tuple[float, float] | None) -> str:
    interval = "" if bounds is None else f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
    return f"{100 * value:.1f}{interval}"
