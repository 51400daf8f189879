"""`megatron-prime eval`."""

import json

from rich.table import Table

from megatron_prime.cli.assemble import build_rollout, start_topology
from megatron_prime.cli.evaluator import Evaluator
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.schema import PrimeConfig
from megatron_prime.observability import Progress
from megatron_prime.observability.durable import replace_file
from megatron_prime.rollout.evaluation import EvaluationResult
from megatron_prime.rollout.local_engine import LocalEngine
from megatron_prime.rollout.sglang_engine import SGLangEngine


def evaluate_checkpoint(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Sample on data.evaluation from the HF checkpoint model.path; print a table, write run_dir/evaluation.json."""
    topology = start_topology(config, data_parallel_only=True)
    progress = Progress(enabled=topology.rank == 0)
    rollout = build_rollout(config, topology)
    try:
        assert isinstance(rollout.engine, LocalEngine | SGLangEngine)
        rollout.engine.load_from_hf(config.model.path)
        result = Evaluator(config, rollout)(0)
    finally:
        rollout.close()
    if topology.rank == 0:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        path = config.run_dir / "evaluation.json"
        replace_file(path, json.dumps(result.metrics(), indent=2) + "\n")
        progress.table(_table(config, result))
        progress.line(f"written to {path}")


def _table(config: PrimeConfig, result: EvaluationResult) -> Table:
    sampling = config.evaluation
    table = Table("metric", "value", title=f"{config.model.path}, temperature {sampling.temperature}")
    for name, value in result.metrics().items():
        table.add_row(name, f"{value:g}" if name.startswith("num") else f"{value:.4f}")
    return table
