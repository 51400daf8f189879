"""`megatron-prime sft`."""

from megatron_prime.cli.assemble import start_topology
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.memory import MemoryConfig
from megatron_prime.conversion.export import export_hf
from megatron_prime.data.sft import SFTDataset
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.observability import Metrics, MetricsLogger, Progress
from megatron_prime.observability.heartbeat import begin_step
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.roles import scoring_settings
from megatron_prime.training.sft import SFTTrainer
from megatron_prime.training.trainable import RoleSpec, Trainable

NUM_PROGRESS_LINES = 10


def sft(config: PrimeConfig, arithmetic: BatchArithmetic) -> None:
    """Train the policy on demonstrations and write it to sft.output (default run_dir/sft) as an HF checkpoint."""
    topology = start_topology(config)
    progress = Progress(enabled=topology.rank == 0)
    output = config.sft_output
    tokenizer = load_tokenizer(config.model.path)
    max_tokens = config.trainer.max_tokens_per_microbatch
    layout, weights = config.sft.layout or config.data.layout, config.sft.weights
    dataset = SFTDataset.read(
        config.sft.data,
        config.data.model_copy(update={"layout": layout, "weights": weights}),
        config.sft.response_field,
        tokenizer,
        max_tokens,
        config.sft.messages_field,
    )
    progress.line(f"{len(dataset)} demonstrations, {dataset.num_dropped} longer than {max_tokens} tokens")
    for line in dataset.notes:
        progress.line(line)
    # Nothing is offloaded, because every phase of the warm-up is an update.
    memory = MemoryConfig(recompute=config.memory.recompute)
    spec = RoleSpec("policy", config.model.path, scoring_settings(config), memory, config.model_options)
    policy = Trainable(spec, topology, config.sft, config.sft.num_steps)
    policy.watch = guards = Guards(config.guards, config.run_dir, topology.rank == 0, progress.warn)
    guards.begin_step(1)
    stream = dataset.stream(config.seed, config.data.shuffle, weights)
    # The log has a folder of its own, so that `train` and `sft` in one run_dir keep each other's history.
    logger = MetricsLogger(config.run_dir / "sft_log") if topology.rank == 0 else None
    every = max(1, config.sft.num_steps // NUM_PROGRESS_LINES)
    with progress.phase("sft", config.sft.num_steps) as advance:

        def after_step(done: int, metrics: Metrics) -> None:
            advance(1)
            metrics.add("guards", guards.end_step(metrics))
            guards.begin_step(done + 1)
            begin_step(done + 1)
            if done % every == 0 or done == config.sft.num_steps:
                progress.step(done, config.sft.num_steps, metrics, {"sft/loss": "loss", "time/step_s": "s"})
            if logger is not None:
                logger.log(done, metrics)

        SFTTrainer(config.sft, policy, stream).run(after_step)
    if logger is not None:
        logger.close()
    export_hf(policy.built, topology, config.model.path, output)
    progress.line(f"HF checkpoint after SFT: {output}")
    stop_watchdog()
    topology.close()
