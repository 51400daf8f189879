"""`megatron-prime sft`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_prime.cli.assemble import start_topology
from megatron_prime.cli.attempt import hold_run
from megatron_prime.cli.offline import OfflineParts, OfflineRun
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.performance.memory import MemoryConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.sft import SFTDataset, demonstration_data
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.environments.episodes import tools_of
from megatron_prime.observability import Progress
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.health.stop import listen
from megatron_prime.training.loop import with_date
from megatron_prime.training.roles import scoring_settings
from megatron_prime.training.sft import SFTTrainer, held_out_loss
from megatron_prime.training.trainable import RoleSpec, Trainable

STATUS = {"sft/loss": "loss"}
SHOWN = {"sft/loss": "loss", "eval/loss": "held_out_loss", "time/step_s": "s"}


def sft(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Train the policy on demonstrations and write it to sft.output (default run_dir/sft) as an HF checkpoint.

    Resumes, stops and saves as `train` does.
    """
    asked = listen()
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    stage = config.stage("sft")
    config = with_date(config, stage.folder, topology)
    # What may be refused is read first: a start that is refused changes no file.
    tools = tools_of(config)
    dataset = _read(config, config.sft.data, tools)
    held_out = _read(config, config.sft.evaluation, tools) if config.sft.evaluation else None
    for line in _start_lines(config, arithmetic, dataset, held_out):
        progress.line(line)
    with hold_run(config, topology) as lock:
        run = OfflineRun(config, stage, topology, progress, lock, asked)
        parts = run.train(partial(_build, config, topology, dataset, held_out))
        assert stage.output is not None
        export_hf(parts.model.built, topology, config.model.path, stage.output)
        progress.line(f"HF checkpoint after SFT: {stage.output}")


def _build(
    config: PrimeConfig,
    topology: Topology,
    dataset: SFTDataset,
    held_out: SFTDataset | None,
    load_weights: bool,
) -> OfflineParts:
    # Nothing is offloaded, because every phase of the warm-up is an update.
    memory = MemoryConfig(recompute=config.memory.recompute)
    spec = RoleSpec("policy", config.model.path, scoring_settings(config), memory, config.model_options)
    policy = Trainable(spec, topology, config.sft, config.sft.num_steps, load_weights)
    stream = dataset.stream(config.seed, config.data.shuffle, config.sft.weights)
    return OfflineParts(
        model=policy,
        stream=stream,
        make_trainer=lambda step_index: SFTTrainer(config.sft, policy, stream, step_index),
        evaluate=None
        if held_out is None
        else lambda _: held_out_loss(policy, held_out.examples, config.sft.batch_size),
        shown=SHOWN,
        status=STATUS,
        evaluated="loss",
    )


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
