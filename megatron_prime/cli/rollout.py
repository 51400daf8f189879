"""`megatron-prime rollout`: samples and verifies the prompts of training steps, without training."""

from typing import Any

from megatron_prime.cli.assemble import build_collector, build_rollout, start_topology
from megatron_prime.cli.train import prompt_stream
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.observability.rollout_log import RolloutLogConfig
from megatron_prime.data.tokenizer import load_tokenizer
from megatron_prime.environments.episodes import tools_of
from megatron_prime.hf.identity import model_identity
from megatron_prime.observability import Progress
from megatron_prime.observability.rollout_log import ROLLOUTS, FileInfo
from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.parallel.topology import Topology
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.training.rollout_recorder import RolloutRecorder


def sample_rollouts(config: PrimeConfig, arithmetic: BatchArithmetic, num_steps: int) -> None:
    """Sample the batches of the first `num_steps` training steps from the HF checkpoint at model.path.

    All groups go to run_dir/rollouts, one file per step. The first step is that of `train` with this configuration.
    """
    del arithmetic
    topology = start_topology(config, data_parallel_only=True)
    progress = Progress(enabled=topology.rank == 0)
    stream = prompt_stream(config, progress, tools_of(config))
    recorder = _recorder(config, topology)
    rollout = build_rollout(config, topology)
    try:
        rollout.engine.load_from_hf(config.model.path)
        collector = build_collector(config, stream, rollout)
        if recorder is not None:
            collector.observe = recorder.observe
        for step_index in range(num_steps):
            stats = collector.collect(step_index).stats
            if recorder is not None:
                recorder.write()
            progress.line(
                f"step {step_index + 1} of {num_steps}: {stats['num_rollouts_sampled']:.0f} responses, accuracy "
                f"{stats['accuracy_sampled']:.3f}, {stats['num_groups_kept']:.0f} of "
                f"{stats['num_prompts_sampled']:.0f} groups kept"
            )
        if recorder is not None:
            recorder.finish()
    finally:
        rollout.close()
        if recorder is not None:
            recorder.close()
    progress.line(f"written to {config.run_dir / ROLLOUTS}")
    stop_watchdog()
    topology.close()


def _recorder(config: PrimeConfig, topology: Topology) -> RolloutRecorder | None:
    if topology.rank != 0:
        return None
    tokenizer: Any = load_tokenizer(config.model.path)
    info = FileInfo(0, "rollout", top_p=config.rollout.top_p, model=model_identity(config.model.path))
    settings = RolloutLogConfig(groups_per_step="all")
    return RolloutRecorder(settings, RolloutLog(config.run_dir / ROLLOUTS), tokenizer, info)
