"""The command `megatron-prime eval`."""

from megatron_prime.cli.assemble import build_rollout, start_topology
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.environments.episodes import tools_of
from megatron_prime.evaluation.accuracy import EvaluationReport
from megatron_prime.evaluation.evaluator import Evaluator, evaluation_sets, notes_of
from megatron_prime.evaluation.result_files import add_evaluation, describe
from megatron_prime.evaluation.saved_responses import write_response_files
from megatron_prime.evaluation.tables import metrics_table, summary_table
from megatron_prime.hf.identity import model_identity
from megatron_prime.observability import Progress
from megatron_prime.observability.durable import make_private
from megatron_prime.parallel.watchdog import stop_watchdog

METRICS_FILE = "evaluation.json"


def evaluate_checkpoint(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Sample on data.evaluation and the benchmarks from the HF checkpoint at model.path.

    Prints tables, adds the result to evaluation.json, and writes eval_tensorboard/ and responses/ below run_dir.
    """
    topology = start_topology(config, data_parallel_only=True)
    progress = Progress(enabled=topology.rank == 0)
    # The prompts are read before servers are started, so that a malformed row fails at once.
    sets = evaluation_sets(config, tools_of(config))
    for note in notes_of(sets):
        progress.line(note)
    rollout = build_rollout(config, topology)
    try:
        evaluator = Evaluator(config, sets, rollout.engine, rollout.verifier, progress, rollout.environments)
        rollout.engine.load_from_hf(config.model.path)
        report = evaluator(0)
    finally:
        rollout.close()
    if topology.rank == 0:
        _write(config, report, progress)
        progress.table(summary_table(config.model.path, config.evaluation, sets, report))
        if "" in report.results:
            progress.table(metrics_table(config.model.path, config.evaluation, report.results[""]))
        progress.line(f"written to {config.run_dir / METRICS_FILE}")
    stop_watchdog()
    topology.close()


def _write(config: PrimeConfig, report: EvaluationReport, progress: Progress) -> None:
    make_private(config.run_dir)
    tensorboard_folder = config.run_dir / "eval_tensorboard"
    description = describe(config, config.model.path, "evaluation", "data")
    add_evaluation(config.run_dir / METRICS_FILE, tensorboard_folder, "eval/", description, report.metrics())
    if config.evaluation.save_responses:
        tokenizer = load_tokenizer(config.model.path)
        model = model_identity(config.model.path)
        paths = write_response_files(config.run_dir / "responses", report.results, tokenizer, model)  # type: ignore[arg-type]
        for path in paths:
            progress.line(f"responses: {path}")
