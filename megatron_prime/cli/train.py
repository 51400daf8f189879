"""`megatron-prime train`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.cli.assemble import (
    RolloutParts,
    build_batches,
    build_collector,
    build_replay,
    build_rollout,
    start_topology,
)
from megatron_prime.cli.attempt import hold_run, open_store, record_start
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.environments.episodes import tools_of
from megatron_prime.evaluation.accuracy import EvaluationReport
from megatron_prime.evaluation.evaluator import Evaluator, evaluation_sets, notes_of
from megatron_prime.evaluation.prm_judge import StepScorer
from megatron_prime.evaluation.probe import PRMProbe, RememberedScorer
from megatron_prime.evaluation.probe_set import ProbeSet, read_probe
from megatron_prime.hf.identity import model_identity
from megatron_prime.observability import MetricsLogger, Progress
from megatron_prime.observability.loggers.protocol import Details, RunInfo
from megatron_prime.observability.rollout_log import ROLLOUTS, FileInfo
from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.parallel.collectives import any_rank, on_first_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.rewards import answer_check
from megatron_prime.rollout.prompt_history import PromptHistory
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.weight_sync import WeightSync
from megatron_prime.training.checkpoint.folder import complete, read_run, require_roles
from megatron_prime.training.checkpoint.run_lock import RunLock
from megatron_prime.training.checkpoint.store import CheckpointStore, RetentionPolicy, RunState
from megatron_prime.training.health.format_tokens import FormatTokens
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.health.stop import StopRequest, listen
from megatron_prime.training.loop import Loop, LoopContext, with_date
from megatron_prime.training.phase_memory import free_memory_for_servers, release_after
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.roles import Roles, build_roles
from megatron_prime.training.rollout_recorder import RolloutRecorder
from megatron_prime.training.step_details import StepDetails
from megatron_prime.training.step_profiler import StepProfiler
from megatron_prime.training.trainer import Trainer, TrainerContext


def train(config: PrimeConfig, arithmetic: BatchArithmetic, replay: Path | None = None) -> None:
    """Train from the start, or from the newest complete checkpoint of run_dir, to the last step.

    With `replay`, the folder of a rollout log or its run, the run trains on what is logged there: it samples and
    verifies nothing, and does not evaluate.

    A run that is asked to stop (training/health/stop.py) saves after the current step and ends with exit code 75.
    """
    asked = listen()
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    for line in (*arithmetic.lines(), *config.preset_lines()):
        progress.line(line)
    config = with_date(config, config.run_dir, topology)
    # What may be refused is looked at first: a start that is refused changes no file.
    tools = tools_of(config)
    stream = prompt_stream(config, progress, tools)
    held_out = evaluation_sets(config, tools) if replay is None else []
    if replay is not None:
        progress.line(f"replaying the rollouts of {replay}: nothing is sampled, verified or evaluated")
    probe_set = read_probe(config)
    for note in [*notes_of(held_out), *([probe_set.summary()] if probe_set else [])]:
        progress.line(note)
    _check_resumable(config, topology, stream)
    retention = RetentionPolicy(config.checkpoint.keep_last, config.checkpoint.keep_best)
    with hold_run(config, topology) as lock:
        store, checkpoint = open_store(config, config.run_dir, retention, topology, lock, progress)
        roles = build_roles(config, topology, load_weights=checkpoint is None)
        guards = Guards(config.guards, config.run_dir, topology.rank == 0, progress.warn)
        for trainable in roles.trained.values():
            trainable.watch = guards
        state = None if checkpoint is None else store.load(checkpoint, roles.trained)
        # Servers may share the GPUs, and size their memory by what is free when they start.
        free_memory_for_servers(topology)
        rollout = build_rollout(config, topology, asked) if replay is None else build_replay(config, replay)
        evaluator = (
            Evaluator(config, held_out, rollout.engine, rollout.verifier, progress, rollout.environments)
            if held_out
            else None
        )
        try:
            run = _Run(
                config, topology, progress, stream, store, lock, roles, guards, rollout, evaluator, probe_set
            )
            _train(run, checkpoint, state, asked)
        finally:
            rollout.close()


@dataclass(frozen=True)
class _Run:
    """The parts of a run."""

    config: PrimeConfig
    topology: Topology
    progress: Progress
    stream: PromptQueue
    store: CheckpointStore
    lock: RunLock
    roles: Roles
    guards: Guards
    rollout: RolloutParts
    evaluator: Evaluator | None
    probe_set: ProbeSet | None


def _train(run: _Run, checkpoint: Path | None, state: RunState | None, asked: StopRequest) -> None:
    config, topology, progress, roles = run.config, run.topology, run.progress, run.roles
    step_index, owed_metrics = 0, None
    if state is not None:
        run.stream.load_state_dict(state.prompt_stream)
        run.guards.load_state_dict(state.guards)
        step_index = state.step_index
        owed_metrics = None if run.evaluator is None else state.owed_metrics
        progress.line(f"resuming after step {step_index} from {checkpoint}")
    sync = run.rollout.sampler.make_weight_sync(roles.policy.built)
    _first_sync(sync, step_index, run.rollout.sampler.startup_note, progress)
    recorder = _recorder(config, topology, step_index, run.lock)
    details = _details(config, topology)
    context = _trainer_context(config, roles, run.stream, sync, run.rollout, progress, recorder, details)
    if state is not None:
        context.batches.resume(state.collector, state.held)
    trainer = Trainer(config, context, step_index)
    logger, history = None, None
    if topology.rank == 0:
        info = record_start(config, config.run_dir, "train", run.lock.attempt, is_first=checkpoint is None)
        logger, history = _open_logs(config, info, step_index, owed_metrics is not None, details)
    try:
        loop_context = LoopContext(
            store=run.store,
            roles=roles.trained,
            prompt_stream=run.stream,
            evaluate=_evaluation(run, trainer),
            probe=_probe(run),
            logger=logger,
            progress=progress,
            guards=run.guards,
            fence=run.lock.fence,
            batches=context.batches,
            prompt_history=history,
            recorder=recorder,
            is_stopping=lambda: any_rank(asked(), topology),
            agree=lambda flag: any_rank(flag, topology),
            capture=StepProfiler(
                config.profile, config.run_dir / "profile", topology.rank, topology.platform, progress.warn
            ).step,
            owed_metrics=owed_metrics,
        )
        asked.defer()
        Loop(config, trainer, loop_context).run()
    finally:
        context.batches.close()
        for file in filter(None, (recorder, logger, history)):
            file.close()
    if config.checkpoint.export_hf:
        destination = config.run_dir / "hf"
        export_hf(roles.policy.built, topology, config.model.path, destination, replace=True)
        progress.line(f"HF checkpoint of the policy: {destination}")
    if "tensorboard" in config.logging.backends:
        progress.line(f"TensorBoard: tensorboard --logdir {config.run_dir / 'tensorboard'}")


def _open_logs(
    config: PrimeConfig, info: RunInfo, step_index: int, is_owed: bool, details: StepDetails | None
) -> tuple[MetricsLogger, PromptHistory]:
    """Return the metrics and the prompt history of this attempt. Call it on rank 0."""
    first_logged = step_index + bool(step_index)
    # The record of a step whose evaluation is owed is written again, with its result.
    backends, resume_step = config.logging.backends, first_logged - is_owed
    details_of = (lambda _: Details()) if details is None else details.of
    logger = MetricsLogger(config.run_dir, resume_step, backends=backends, info=info, details=details_of)
    return logger, PromptHistory(config.run_dir / "prompts.jsonl", first_logged)


def _recorder(
    config: PrimeConfig, topology: Topology, step_index: int, lock: RunLock
) -> RolloutRecorder | None:
    """Return what writes the rollout log of this attempt, on rank 0."""
    if topology.rank != 0:
        return None
    log = RolloutLog(config.run_dir / ROLLOUTS, step_index + 1, config.rollout_log.max_mib, lock.fence)
    beta = config.prm.beta if config.prm.enabled else None
    info = FileInfo(0, beta=beta, attempt=lock.attempt, model=model_identity(config.model.path))
    tokenizer: Any = load_tokenizer(config.model.path)
    return RolloutRecorder(config.rollout_log, log, tokenizer, info)


def _details(config: PrimeConfig, topology: Topology) -> StepDetails | None:
    """Return what takes histograms and samples for the loggers, on rank 0."""
    if topology.rank != 0 or not config.logging.backends:
        return None
    tokenizer: Any = load_tokenizer(config.model.path)
    return StepDetails(tokenizer, config.logging.details_every, config.seed)


def _check_resumable(config: PrimeConfig, topology: Topology, stream: PromptQueue) -> None:
    """Refuse a run whose newest checkpoint was written with other data or roles. Changes nothing.

    Raises:
        ValueError: the checkpoint cannot be resumed with this configuration.
    """

    def look() -> dict[str, Any] | None:
        found = complete(config.run_dir / "checkpoints")
        if not found:
            return None
        try:
            read_run(found[-1])
        except ValueError:
            return None  # It is damaged, and will be set aside.
        return require_roles(found[-1], ["policy", *(["prm"] if config.prm.is_trained else [])])

    run = on_first_rank(look, topology)
    if run is not None:
        stream.load_state_dict(run["prompt_stream"])


def _first_sync(sync: WeightSync, step_index: int, startup_note: str, progress: Progress) -> None:
    """Push the starting weights. Servers may take minutes to start, so the user is told what the run waits for."""
    started = time.monotonic()
    if startup_note:
        progress.line(startup_note)
    sync.push(step_index)
    if startup_note:
        progress.line(f"the engine serves the policy, {time.monotonic() - started:.0f} s later")


def _trainer_context(
    config: PrimeConfig,
    roles: Roles,
    stream: PromptQueue,
    sync: WeightSync,
    rollout: RolloutParts,
    progress: Progress,
    recorder: RolloutRecorder | None = None,
    details: StepDetails | None = None,
) -> TrainerContext:
    collector = build_collector(config, stream, rollout)
    if recorder is not None:
        collector.observe = recorder.observe
    return TrainerContext(
        engine=rollout.engine,
        batches=build_batches(config, collector, stream, rollout, progress.warn),
        policy=roles.policy,
        prm_phase=None if roles.prm is None else PRMPhase(roles.prm, config.prm, config.seed),
        reference=roles.reference,
        weight_sync=sync,
        warn=progress.warn,
        observers=[observer.note for observer in (recorder, details) if observer is not None],
        format_tokens=FormatTokens(load_tokenizer(config.model.path)),  # type: ignore[arg-type]
    )


def prompt_stream(config: PrimeConfig, progress: Progress, tools: Sequence[Schema] | None) -> PromptQueue:
    """Return the training prompts in the order of the run, with the schemas of the environment's tools."""
    tokenizer = load_tokenizer(config.model.path)
    longest = config.rollout.max_prompt_tokens
    check = answer_check(config.reward)
    dataset = PromptDataset.read(
        config.data.train, config.data, tokenizer, longest, check, config.reads_rows, tools
    )
    for source, ability in sorted(dataset.prompts.kinds):
        config.reward.verifier_of(source, ability)  # Refuse now a prompt that no verifier can judge.
    for line in (f"{len(dataset)} training prompts", *dataset.notes):
        progress.line(line)
    return PromptQueue(dataset.stream(config.seed, config.data.shuffle, config.data.weights))


def _evaluation(run: _Run, trainer: Trainer) -> Callable[[int], EvaluationReport] | None:
    """Return the function that measures held-out accuracy after a step; None without evaluation data."""
    evaluator, engine = run.evaluator, run.rollout.engine
    if evaluator is None:
        return None

    def evaluate(step_index: int) -> EvaluationReport:
        trainer.sync_weights()
        with release_after(engine):
            return evaluator(step_index)

    return evaluate


def _probe(run: _Run) -> PRMProbe | None:
    """Return what measures the PRM on the solutions of prm.probe; None without them."""
    config, roles = run.config, run.roles
    if run.probe_set is None:
        return None
    # With prm.source = "policy" the policy takes the PRM's place.
    prm = roles.policy if roles.prm is None else roles.prm
    # Where the policy before its update is the reference, that is the policy as it is between two steps.
    reference = roles.policy if roles.reference is None else RememberedScorer(roles.reference)
    scorer = StepScorer(prm, reference, config.prm, config.trainer.max_tokens_per_microbatch)
    return PRMProbe(run.probe_set, scorer)
