"""`megatron-prime eval`."""

import json
import math

from rich.table import Table

from megatron_prime.cli.assemble import build_rollout, start_topology
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.evaluation.accuracy import EvaluationReport, EvaluationResult
from megatron_prime.evaluation.evaluator import EvaluationSet, Evaluator
from megatron_prime.evaluation.saved_responses import write_responses
from megatron_prime.observability import Progress
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.tensorboard import TensorBoardWriter
from megatron_prime.parallel.watchdog import stop_watchdog


def evaluate_checkpoint(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Sample on data.evaluation and the benchmarks from the HF checkpoint model.path.

    Prints tables, and writes below run_dir: evaluation.json, eval_tensorboard/ and responses/.
    """
    topology = start_topology(config, data_parallel_only=True)
    progress = Progress(enabled=topology.rank == 0)
    rollout = build_rollout(config, topology)
    try:
        # Before the weights are loaded: a row that does not fit should not cost the wait.
        evaluator = Evaluator(config, rollout.engine, rollout.verifier, rollout.sampling.stop_token_ids)
        for note in evaluator.notes():
            progress.line(note)
        assert isinstance(rollout.engine, LocalEngine | SGLangEngine)
        rollout.engine.load_from_hf(config.model.path)
        report = evaluator(0)
    finally:
        rollout.close()
    if topology.rank == 0:
        _write(config, report, progress)
        progress.table(summary_table(config, evaluator.sets, report))
        if "" in report.results:
            progress.table(_table(config, report.results[""]))
        progress.line(f"written to {config.run_dir / 'evaluation.json'}")
    stop_watchdog()
    topology.close()


def _write(config: PrimeConfig, report: EvaluationReport, progress: Progress) -> None:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    metrics = report.metrics()
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    replace_file(config.run_dir / "evaluation.json", json.dumps(finite, indent=2) + "\n")
    writer = TensorBoardWriter(config.run_dir / "eval_tensorboard")
    writer.log(0, {f"eval/{name}": value for name, value in metrics.items()})
    writer.close()
    if config.evaluation.save_responses:
        tokenizer = load_tokenizer(config.model.path)
        folder = config.run_dir / "responses"
        folder.mkdir(exist_ok=True)
        for name, result in report.results.items():
            path = folder / f"{name or 'evaluation'}.jsonl"
            write_responses(path, result.rollouts, result.samples_per_prompt, tokenizer)  # type: ignore[arg-type]
            progress.line(f"responses: {path}")


def summary_table(config: PrimeConfig, sets: list[EvaluationSet], report: EvaluationReport) -> Table:
    """A row a set of prompts: problems x samples, and in percent avg@k and pass@k with their intervals."""
    table = Table("set", "n x k", "T", "avg@k, %", "pass@k, %", "cut, %", "err", box=None, pad_edge=False)
    level = f", {config.evaluation.confidence:.0%} intervals" if config.evaluation.num_resamples else ""
    table.title = f"{config.model.path}{level}"
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
    if sum(bool(prompts.name) for prompts in sets) > 1:
        table.add_row("mean", "", "", _percent(report.benchmark_average, None), "", "", "")
    return table


def _percent(value: float, bounds: tuple[float, float] | None) -> str:
    interval = "" if bounds is None else f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
    return f"{100 * value:.1f}{interval}"


def _table(config: PrimeConfig, result: EvaluationResult) -> Table:
    sampling = config.evaluation
    table = Table("metric", "value", title=f"{config.model.path}, temperature {sampling.temperature}")
    for name, value in result.metrics().items():
        table.add_row(name, f"{value:g}" if name.startswith("num") else f"{value:.4f}")
    return table
