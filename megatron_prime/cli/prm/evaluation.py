"""The command `megatron-prime eval-prm`."""

from megatron_prime.cli.assemble import start_topology
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.evaluation.prm_inputs import PRMInputs
from megatron_prime.evaluation.prm_judge import StepScorer
from megatron_prime.evaluation.prm_report import METRICS_FILE, STEP_SCORES_FILE, judge_prm
from megatron_prime.evaluation.result_files import describe
from megatron_prime.evaluation.tables import prm_table
from megatron_prime.hf.shape import fewest_positions
from megatron_prime.observability import Progress
from megatron_prime.parallel.topology import Topology
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.training.roles import role_spec
from megatron_prime.training.trainable import Scorer


def evaluate_prm(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Judge the PRM at prm.path against reference.path on the files that [prm_evaluation] names.

    Prints a table, and writes prm_evaluation.json, step_scores.jsonl and prm_tensorboard/ below run_dir.
    """
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    inputs = PRMInputs(config)
    for line in inputs.summary():
        progress.line(line)
    report = judge_prm(config, inputs, _build_scorer(config, topology, progress))
    if topology.rank == 0:
        tables = ("evaluation", "prm_evaluation", "prm", "reference", "data")
        report.write(config.run_dir, describe(config, config.prm_path, *tables))
        progress.table(prm_table(config.prm_path, config.evaluation, report))
        progress.line(
            f"written to {config.run_dir / METRICS_FILE}, step scores to {STEP_SCORES_FILE} beside it"
        )
    stop_watchdog()
    topology.close()


def _build_scorer(config: PrimeConfig, topology: Topology, progress: Progress) -> StepScorer:
    """Load the PRM and the reference and keep both off the device until they score."""
    prm = Scorer(role_spec(config, "prm", config.prm_path), topology)
    reference = Scorer(role_spec(config, "reference", config.evaluated_reference_path), topology)
    for role in (prm, reference):
        role.residency.park()
    positions = fewest_positions(config.model_paths("evaluate_prm").values())
    longest = min(config.trainer.max_tokens_per_microbatch, positions)
    return StepScorer(prm, reference, config.prm, longest, progress)
