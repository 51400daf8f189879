"""`megatron-prime train`."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prime.cli.assemble import (
    RolloutParts,
    build_rollout,
    scoring_settings,
    start_topology,
)
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.data.mixing import ResumableStream
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.steps import step_ids
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.evaluation.evaluator import Evaluator
from megatron_prime.observability import MetricsLogger, Progress
from megatron_prime.observability.provenance import save_provenance
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.rollout.collector import Collector
from megatron_prime.rollout.prompt_history import PromptHistory
from megatron_prime.rollout.weight_sync import WeightSync
from megatron_prime.training.checkpoint.run_lock import RunLock
from megatron_prime.training.checkpoint.store import CheckpointStore, Keeping
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.health.stop import EXIT_CODE, RunStopped, StopRequest
from megatron_prime.training.loop import Loop, Surroundings, changed_settings, save_resolved_config
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.trainable import Scorer, Trainable
from megatron_prime.training.trainer import Parts, Trainer
from megatron_prime.types import Prompt


def train(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Train from the start, or from the newest complete checkpoint of run_dir, to the last step.

    A run that is asked to stop (training.stop) saves after the step at hand and ends with exit code 75.
    """
    asked = StopRequest()
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    for line in arithmetic.lines():
        progress.line(line)
    lock = RunLock(config.run_dir, topology)
    try:
        settings = config.checkpoint
        keeping = Keeping(settings.keep_last, settings.keep_best, settings.async_save, lock.life, lock.fence)
        store = CheckpointStore(config.run_dir / "checkpoints", keeping, topology)
        checkpoint = store.newest_sound(
            settings.on_damage, warn=lambda text: progress.line(f"WARNING: {text}")
        )
        store.tidy()
        if topology.rank == 0:
            for change in changed_settings(config) if checkpoint is not None else ():
                progress.line(f"WARNING: changed since this run was last started: {change}")
            save_resolved_config(config)
            save_provenance(config.run_dir, lock.life)
        rollout = build_rollout(config, topology)
        try:
            _train(config, topology, progress, store, checkpoint, rollout, lock, asked)
        finally:
            rollout.close()
    finally:
        lock.close()
        stop_watchdog()
    topology.close()


def _train(
    config: PrimeConfig,
    topology: Topology,
    progress: Progress,
    store: CheckpointStore,
    checkpoint: Path | None,
    rollout: RolloutParts,
    lock: RunLock,
    asked: StopRequest,
) -> None:
    models = _build_models(config, topology, load_weights=checkpoint is None)
    stream = _prompt_stream(config, progress)
    guards = Guards(
        config.guards, config.run_dir, topology.rank == 0, lambda text: progress.line(f"WARNING: {text}")
    )
    for trainable in models.trained.values():
        trainable.watch = guards
    step_index, collector_state = 0, {}
    if checkpoint is not None:
        state = store.load(checkpoint, models.trained)
        stream.load_state_dict(state.prompt_stream)
        guards.load_state_dict(state.guards)
        step_index = state.step_index
        collector_state = state.collector
        progress.line(f"resuming after step {step_index} from {checkpoint}")
    sync = rollout.sampler.make_weight_sync(models.policy.built)
    _first_sync(sync, step_index, rollout.sampler.startup_note, progress)
    parts = _parts(config, models, stream, sync, rollout, progress)
    parts.collector.load_state_dict(collector_state)
    trainer = Trainer(config, parts, step_index)
    first_logged = step_index + bool(step_index)
    logger = MetricsLogger(config.run_dir, first_logged) if topology.rank == 0 else None
    history = PromptHistory(config.run_dir / "prompts.jsonl", first_logged) if topology.rank == 0 else None
    try:
        around = Surroundings(
            store=store,
            roles=models.trained,
            prompt_stream=stream,
            evaluate=_evaluator(config, rollout, progress),
            logger=logger,
            progress=progress,
            guards=guards,
            fence=lock.fence,
            collector=parts.collector,
            prompt_history=history,
            is_stopping=lambda: any_rank(asked(), topology),
        )
        Loop(config, trainer, around).run()
    except RunStopped as stopped:
        progress.line(str(stopped))
        raise SystemExit(EXIT_CODE) from None
    finally:
        sync.close()
        for file in filter(None, (logger, history)):
            file.close()
    if config.checkpoint.export_hf:
        destination = config.run_dir / "hf"
        export_hf(models.policy.built, topology, config.model.path, destination, replace=True)
        progress.line(f"HF checkpoint of the policy: {destination}")
    progress.line(f"TensorBoard: tensorboard --logdir {config.run_dir / 'tensorboard'}")


def _first_sync(sync: WeightSync, step_index: int, startup_note: str, progress: Progress) -> None:
    """Push the starting weights. Servers may take minutes to start, so the user is told what the run waits for."""
    started = time.monotonic()
    if startup_note:
        progress.line(startup_note)
    sync.push(step_index)
    if startup_note:
        progress.line(f"the engine serves the policy, {time.monotonic() - started:.0f} s later")


class _Models:
    """The roles of a run."""

    def __init__(self, policy: Trainable, prm: Scorer | None, reference: Scorer | None) -> None:
        self.policy = policy
        self.prm = prm
        self.reference = reference
        self.trained: dict[str, Trainable] = {"policy": policy}
        if isinstance(prm, Trainable):
            self.trained["prm"] = prm


def _build_models(config: PrimeConfig, topology: Topology, load_weights: bool) -> _Models:
    settings, num_steps = scoring_settings(config), config.trainer.num_steps
    memory, acceleration = config.memory, config.acceleration
    policy = Trainable(
        "policy",
        config.model.path,
        topology,
        scoring_settings(config, config.rollout.temperature),
        config.policy,
        num_steps,
        load_weights,
        memory,
        acceleration,
    )
    prm: Scorer | None = None
    if config.prm.enabled and not config.prm.is_trained:
        prm = Scorer("prm", config.prm_path, topology, settings, memory=memory, acceleration=acceleration)
    elif config.prm.enabled:
        prm = Trainable(
            "prm",
            config.prm_path,
            topology,
            settings,
            config.prm,
            num_steps,
            load_weights,
            memory,
            acceleration,
        )
    reference: Scorer | None = None
    if config.has_reference_model:
        path = config.reference_path
        reference = Scorer("reference", path, topology, settings, memory=memory, acceleration=acceleration)
    models = _Models(policy, prm, reference)
    for role in filter(None, (policy, prm, reference)):
        role.residency.park()
    return models


def _parts(
    config: PrimeConfig,
    models: _Models,
    stream: ResumableStream[Prompt],
    sync: WeightSync,
    rollout: RolloutParts,
    progress: Progress,
) -> Parts:
    segmenter = None
    if config.prm.enabled and config.prm.granularity == "step":
        tokenizer: Any = load_tokenizer(config.model.path)
        segmenter = partial(step_ids, tokenizer)
    minibatch_counts = [config.policy.num_minibatches]
    if config.prm.is_trained:
        minibatch_counts.append(config.prm.num_minibatches)
    collector = Collector(
        rollout.engine,
        stream,
        rollout.verifier,
        rollout.sampling,
        config.filter,
        prompts_per_step=config.trainer.prompts_per_step,
        group_size=config.rollout.group_size,
        rows_multiple_of=math.lcm(*minibatch_counts),
        step_segmenter=segmenter,
        allow_mixed_versions=config.rollout.sglang.allow_mixed_versions,
    )
    return Parts(
        engine=rollout.engine,
        collector=collector,
        policy=models.policy,
        prm_phase=None if models.prm is None else PRMPhase(models.prm, config.prm, config.seed),
        reference=models.reference,
        weight_sync=sync,
        warn=lambda text: progress.line(f"WARNING: {text}"),
    )


def _prompt_stream(config: PrimeConfig, progress: Progress) -> ResumableStream[Prompt]:
    tokenizer = load_tokenizer(config.model.path)
    dataset = PromptDataset.read(config.data.train, config.data, tokenizer, config.rollout.max_prompt_tokens)
    for source, ability in sorted(dataset.prompts.kinds):
        config.reward.verifier_of(source, ability)  # a prompt that nobody can judge is told of now
    for line in (f"{len(dataset)} training prompts", *dataset.notes):
        progress.line(line)
    return dataset.stream(config.seed, config.data.shuffle, config.data.weights)


def _evaluator(config: PrimeConfig, rollout: RolloutParts, progress: Progress) -> Evaluator | None:
    if not config.data.evaluation and not config.evaluation.benchmarks:
        return None
    evaluator = Evaluator(config, rollout.engine, rollout.verifier, rollout.sampling.stop_token_ids)
    for note in evaluator.notes():
        progress.line(note)
    return evaluator
