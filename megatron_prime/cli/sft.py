"""`megatron-prime sft`."""

from collections.abc import Sequence
from pathlib import Path

from megatron_prime.cli.assemble import start_topology
from megatron_prime.cli.attempt import hold_run, open_store, record_start
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.performance.memory import MemoryConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.sft import SFTDataset, demonstration_data
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.environments.episodes import tools_of
from megatron_prime.observability import MetricsLogger, Progress
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.checkpoint.run_lock import RunLock
from megatron_prime.training.checkpoint.store import RetentionPolicy
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.health.stop import StopRequest, listen
from megatron_prime.training.loop import (
    Loop,
    LoopContext,
    LoopOutput,
    with_date,
)
from megatron_prime.training.roles import scoring_settings
from megatron_prime.training.sft import SFTTrainer, held_out_loss
from megatron_prime.training.step_profiler import StepProfiler
from megatron_prime.training.trainable import RoleSpec, Trainable

NUM_PROGRESS_LINES = 10
STATUS = {"sft/loss": "loss"}
SHOWN = {"sft/loss": "loss", "eval/loss": "held_out_loss", "time/step_s": "s"}


def sft(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Train the policy on demonstrations and write it to sft.output (default run_dir/sft) as an HF checkpoint.

    Resumes, stops and saves as `train` does.
    """
    asked = listen()
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    config = with_date(config, config.sft_log, topology)
    # What may be refused is read first: a start that is refused changes no file.
    tools = tools_of(config)
    dataset = _read(config, config.sft.data, tools)
    held_out = _read(config, config.sft.evaluation, tools) if config.sft.evaluation else None
    for line in _start_lines(config, arithmetic, dataset, held_out):
        progress.line(line)
    with hold_run(config, topology) as lock:
        policy = _train(config, dataset, held_out, topology, progress, lock, asked)
        export_hf(policy.built, topology, config.model.path, config.sft_output)
        progress.line(f"HF checkpoint after SFT: {config.sft_output}")


def _train(
    config: PrimeConfig,
    dataset: SFTDataset,
    held_out: SFTDataset | None,
    topology: Topology,
    progress: Progress,
    lock: RunLock,
    asked: StopRequest,
) -> Trainable:
    retention = RetentionPolicy(config.checkpoint.keep_last)
    store, checkpoint = open_store(config, config.sft_log, retention, topology, lock, progress)
    # Nothing is offloaded, because every phase of the warm-up is an update.
    memory = MemoryConfig(recompute=config.memory.recompute)
    spec = RoleSpec("policy", config.model.path, scoring_settings(config), memory, config.model_options)
    policy = Trainable(spec, topology, config.sft, config.sft.num_steps, load_weights=checkpoint is None)
    policy.watch = guards = Guards(config.guards, config.run_dir, topology.rank == 0, progress.warn)
    stream = dataset.stream(config.seed, config.data.shuffle, config.sft.weights)
    step_index = 0
    if checkpoint is not None:
        state = store.load(checkpoint, {"policy": policy})
        stream.load_state_dict(state.prompt_stream)
        guards.load_state_dict(state.guards)
        step_index = state.step_index
        progress.line(f"resuming after step {step_index} from {checkpoint}")
    logger = None
    if topology.rank == 0:
        info = record_start(config, config.sft_log, "sft", lock.attempt, is_first=checkpoint is None)
        resume_step, backends = step_index + bool(step_index), config.logging.backends
        logger = MetricsLogger(config.sft_log, resume_step, backends=backends, info=info)
    context = LoopContext(
        store=store,
        roles={"policy": policy},
        prompt_stream=stream,
        evaluate=None
        if held_out is None
        else lambda _: held_out_loss(policy, held_out.examples, config.sft.batch_size),
        logger=logger,
        progress=progress,
        guards=guards,
        fence=lock.fence,
        is_stopping=lambda: any_rank(asked(), topology),
        agree=lambda flag: any_rank(flag, topology),
        capture=StepProfiler(
            config.profile, config.sft_log / "profile", topology.rank, topology.platform, progress.warn
        ).step,
        output=LoopOutput("sft", SHOWN, STATUS, "loss", max(1, config.sft.num_steps // NUM_PROGRESS_LINES)),
    )
    try:
        asked.defer()
        Loop(_loop_config(config), SFTTrainer(config.sft, policy, stream, step_index), context).run()
    finally:
        if logger is not None:
            logger.close()
    return policy


def _read(config: PrimeConfig, files: Sequence[Path], tools: Sequence[Schema] | None) -> SFTDataset:
    return SFTDataset.read(
        files,
        demonstration_data(config),
        config.sft.response_field,
        load_tokenizer(config.model.path),
        config.trainer.max_tokens_per_microbatch,
        config.sft.messages_field,
        tools,
    )


def _start_lines(
    config: PrimeConfig, arithmetic: BatchArithmetic, dataset: SFTDataset, held_out: SFTDataset | None
) -> list[str]:
    """Return the batch arithmetic, and the notes on the data, for the start of the log."""
    settings, longest = config.sft, config.trainer.max_tokens_per_microbatch
    num_responses = settings.num_steps * settings.batch_size
    lines = [
        arithmetic.lines()[0],
        f"batch       {settings.batch_size} responses per step, 1 update per step",
        f"microbatch  up to {longest} packed tokens per process",
        f"run         {settings.num_steps} steps x {settings.batch_size} = {num_responses} responses, "
        f"{num_responses / len(dataset):.2f} epochs",
        f"{len(dataset)} demonstrations, {dataset.num_dropped} longer than {longest} tokens",
        *dataset.notes,
    ]
    if held_out is not None:
        lines += [
            f"{len(held_out)} held-out demonstrations, {held_out.num_dropped} longer than {longest} tokens",
            *held_out.notes,
        ]
    return lines


def _loop_config(config: PrimeConfig) -> PrimeConfig:
    """Return the configuration with the schedule of the warm-up where the loop looks for it."""
    schedule = {"num_steps": config.sft.num_steps, "eval_every": config.sft.eval_every}
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=schedule)})
