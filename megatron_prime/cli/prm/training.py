"""`megatron-prime train-prm`."""

from functools import partial
from typing import Any

from megatron_prime.cli.assemble import start_topology
from megatron_prime.cli.attempt import hold_run
from megatron_prime.cli.offline import OfflineParts, OfflineRun
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.data.ordering import ResumableOrder
from megatron_prime.data.responses.held_out import SavedGroups
from megatron_prime.data.steps import step_ids
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.observability import Progress
from megatron_prime.parallel.collectives import on_first_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.preflight.prm_training import offline_lines, read_saved_groups, record_of
from megatron_prime.rollout.collector import StepSegmenter
from megatron_prime.training.health.stop import listen
from megatron_prime.training.offline_prm import HeldOutPRM, HeldOutResponses, OfflinePRMTrainer
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.roles import build_offline_prm

STATUS = {"prm/pair_accuracy": "pair accuracy"}
SHOWN = {
    "prm/ce": "ce",
    "prm/pair_accuracy": "pair_accuracy",
    "eval/prm_pair_accuracy": "held_out_pair_accuracy",
    "time/step_s": "s",
}


def train_prm(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Train the PRM on saved responses and write it to prm_training.output (default run_dir/prm) as an HF checkpoint.

    Resumes, stops and saves as `train` does.
    """
    asked = listen()
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    stage = config.stage("train_prm")
    # What may be refused is read first: a start that is refused changes no file.
    groups = read_saved_groups(config)
    for line in _start_lines(config, arithmetic, groups):
        progress.line(line)
    measured: list[HeldOutPRM] = []
    with hold_run(config, topology) as lock:
        run = OfflineRun(config, stage, topology, progress, lock, asked)
        parts = run.train(partial(_build, config, topology, groups, measured))
        assert stage.output is not None
        export_hf(parts.model.built, topology, config.prm_path, stage.output)
        on_first_rank(lambda: record_of(config).write(stage.output), topology)  # type: ignore[arg-type]
        progress.line(
            f"HF checkpoint of the PRM: {stage.output}; a run starts from it with prm.path = '{stage.output}' and "
            f"reference.path = '{config.reference_path}'"
        )
        _report(measured, progress)


def _report(measured: list[HeldOutPRM], progress: Progress) -> None:
    """Print the quality on held-out responses at the end, and at the start if this attempt has measured it."""
    if not measured:
        return
    before = f", before the first step {measured[0].summary()}" if len(measured) > 1 else ""
    progress.line(f"PRM on held-out responses: pair accuracy {measured[-1].summary()}{before}")


def _build(
    config: PrimeConfig,
    topology: Topology,
    groups: SavedGroups,
    measured: list[HeldOutPRM],
    load_weights: bool,
) -> OfflineParts:
    settings = config.prm_training
    prm, reference = build_offline_prm(config, topology, load_weights)
    phase = PRMPhase(prm, config.offline_prm, config.seed)
    stream = ResumableOrder(groups.train, groups.fingerprint, config.seed, config.data.shuffle)
    held_out = HeldOutResponses(
        prm, reference, config.offline_prm, groups.held_out, settings.prompts_per_step
    )

    def evaluate(_: int) -> HeldOutPRM:
        measured.append(held_out.measure())
        return measured[-1]

    def make_trainer(step_index: int) -> OfflinePRMTrainer:
        segmenter = _segmenter(config)
        return OfflinePRMTrainer(phase, reference, stream, settings.prompts_per_step, segmenter, step_index)

    return OfflineParts(
        model=prm,
        stream=stream,
        make_trainer=make_trainer,
        evaluate=evaluate if groups.held_out else None,
        shown=SHOWN,
        status=STATUS,
        evaluated="pair accuracy of the PRM",
    )


def _segmenter(config: PrimeConfig) -> StepSegmenter | None:
    if config.prm.granularity != "step":
        return None
    tokenizer: Any = load_tokenizer(config.model.path)
    return partial(step_ids, tokenizer)


def _start_lines(config: PrimeConfig, arithmetic: BatchArithmetic, groups: SavedGroups) -> list[str]:
    """Return the batch arithmetic, and the notes on the responses, for the start of the log."""
    *lines, run = offline_lines(config, arithmetic)
    num_groups = config.prm_training.num_steps * config.prm_training.prompts_per_step
    return [*lines, f"{run}, {num_groups / len(groups.train):.2f} epochs", *groups.notes]
