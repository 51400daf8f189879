"""Builds the parts of a run from its configuration. The platform and the engine are chosen here and nowhere else."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.data.steps import step_ids
from megatron_prime.data.tokenizer import load_tokenizer, stop_token_ids, vocabulary_fault
from megatron_prime.engines.local.build import build_local_engine
from megatron_prime.engines.parts import EngineBuilder, EngineParts
from megatron_prime.engines.replay import replay_parts
from megatron_prime.engines.sglang.build import build_sglang_engine
from megatron_prime.environments.episodes import PooledEpisodes, open_environments
from megatron_prime.hf.shape import read_shape
from megatron_prime.logprobs.output_layer import select_kernel
from megatron_prime.models.te_layers import check_acceleration, lost_without
from megatron_prime.observability import Progress
from megatron_prime.observability.progress import route_warnings
from megatron_prime.observability.rollout_log import log_folder
from megatron_prime.parallel.collectives import all_gather_lists, broadcast_object
from megatron_prime.parallel.pipeline_messages import connect_stages
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import Topology, configured_topology, with_own_host_group
from megatron_prime.parallel.watchdog import start_watchdog
from megatron_prime.rewards import RewardPools
from megatron_prime.rollout.collector import BatchSize, Collector
from megatron_prime.rollout.engine import CheckpointEngine
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.replay import LoggedGroups, ReplayCollector
from megatron_prime.rollout.schedules.batches import BatchSource, OnPolicy
from megatron_prime.rollout.schedules.continuous import Continuous
from megatron_prime.rollout.schedules.one_step_off import OneStepOff
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import SamplingParams

_LOG = logging.getLogger(__name__)

ENGINES: dict[str, EngineBuilder] = {"local": build_local_engine, "sglang": build_sglang_engine}
"""Value of rollout.engine -> the function that builds that engine."""


def start_topology(config: PrimeConfig, data_parallel_only: bool = False) -> Topology:
    """Join the distributed job and lay out its ranks. Raises ValueError when this machine can't do what is configured.

    Args:
        config: the run's configuration.
        data_parallel_only: ignore the other parallel sizes, for commands that build no Megatron model.
    """
    settings = config.platform
    platform = select_platform(
        settings.device, settings.dtype, settings.threads_per_process, settings.timeout_s, settings.layers
    )
    if not data_parallel_only:
        select_kernel(config.trainer.logprob_kernel, platform.is_cuda)
        check_acceleration(config.model_options, platform)
    platform.start_process_group()
    parallel = ParallelConfig() if data_parallel_only else config.parallel
    topology = configured_topology(platform, parallel, config.seed)
    connect_stages(topology)
    route_warnings(Progress(), topology.rank)
    # This is a warning, since plain torch layers compute the same, only slower.
    lost = lost_without(platform)
    if lost is not None and topology.rank == 0 and not data_parallel_only:
        _LOG.warning(lost)
    start_watchdog(
        topology.rank, topology.world_size, settings.timeout_s, config.run_dir / "reports", platform.is_cuda
    )
    return topology


@dataclass(frozen=True)
class RolloutParts:
    """The parts of a run that sample responses and judge them."""

    sampler: EngineParts
    verifier: RolloutVerifier
    pool: RewardPools | None
    """None in a replay, which verifies nothing."""
    sampling: SamplingParams
    replay: LoggedGroups | None = None
    """The rollout log that a replay trains on, instead of sampling."""
    environments: PooledEpisodes | None = None
    """The environments that reply to this rank's responses; None without, and on ranks that sample nothing."""

    @property
    def engine(self) -> CheckpointEngine:
        """The engine that samples."""
        return self.sampler.engine

    def close(self) -> None:
        """End the engine, and the processes of verifiers and environments."""
        with contextlib.ExitStack() as stack:
            if self.environments is not None:
                stack.callback(self.environments.close)
            stack.callback(self.engine.close)
            if self.pool is not None:
                stack.callback(self.pool.close)


def build_rollout(
    config: PrimeConfig, topology: Topology, is_stopping: Callable[[], bool] = lambda: False
) -> RolloutParts:
    """Build the configured engine, still without weights, the environments of this rank, and the verifier.

    Args:
        config: the run's configuration.
        topology: of the job.
        is_stopping: returns whether this rank was asked to stop, which ends the wait for a reward server.
    """
    # A thread that samples ahead meets the other ranks' threads, while the trainers meet for themselves.
    meeting = with_own_host_group(topology) if config.rollout.samples_ahead else topology
    ranks = Ranks(
        topology.rank,
        topology.world_size,
        gather=lambda items: all_gather_lists(items, meeting),
        broadcast=lambda item: broadcast_object(item, meeting),
    )
    tokenizer = load_tokenizer(config.model.path)
    stop_ids = stop_token_ids(tokenizer, config.model.path)
    fault = vocabulary_fault(tokenizer, stop_ids, read_shape(config.model.path).vocab_size)
    if fault:
        raise ValueError(f"model.path = {config.model.path}: {fault}")
    # With servers, the responses of all ranks are sampled from the first. Environments start before the engine, because
    # they fail sooner.
    is_sampling = topology.rank == 0 or not config.rollout.uses_servers
    environments = open_environments(config, tokenizer, stop_ids) if is_sampling else None
    with contextlib.ExitStack() as undo:
        if environments is not None:
            undo.callback(environments.close)
        sampler = ENGINES[config.rollout.engine](config, topology, ranks)
        undo.callback(sampler.engine.close)
        pool = RewardPools(config.reward)
        undo.pop_all()
    sampling = _sampling(config, stop_ids)
    outage_s = config.reward.http.max_outage_s
    verifier = RolloutVerifier(pool.verify_all, tokenizer, ranks, outage_s, is_stopping)  # type: ignore[arg-type]
    return RolloutParts(sampler, verifier, pool, sampling, environments=environments)


def build_replay(config: PrimeConfig, source: Path) -> RolloutParts:
    """Return what takes the place of engine and verifier in a run that replays the rollout log of `source`."""
    tokenizer: Any = load_tokenizer(config.model.path)
    most_tokens = config.rollout.max_prompt_tokens, config.rollout.max_response_tokens
    logged = LoggedGroups(log_folder(source), most_tokens)
    sampling = _sampling(config, stop_token_ids(tokenizer, config.model.path))
    return RolloutParts(replay_parts(), RolloutVerifier(lambda _: [], tokenizer), None, sampling, logged)


def build_collector(config: PrimeConfig, stream: PromptQueue, rollout: RolloutParts) -> Collector:
    """Return the collector of training batches, from the engine or from a rollout log."""
    segmenter = None
    if config.prm.enabled and config.prm.granularity == "step":
        tokenizer: Any = load_tokenizer(config.model.path)
        segmenter = partial(step_ids, tokenizer)
    minibatch_counts = [config.policy.num_minibatches]
    if config.prm.is_trained:
        minibatch_counts.append(config.prm.num_minibatches)
    collector = (Collector if rollout.replay is None else ReplayCollector)(
        rollout.engine,
        stream,
        rollout.verifier,
        rollout.sampling,
        config.filter,
        BatchSize(
            config.trainer.prompts_per_step,
            config.rollout.group_size,
            math.lcm(*minibatch_counts),
            config.rollout.max_in_flight,
        ),
        step_segmenter=segmenter,
        allow_mixed_versions=config.rollout.mixes_versions,
    )
    collector.environments = rollout.environments
    if isinstance(collector, ReplayCollector) and rollout.replay is not None:
        collector.logged = rollout.replay
    return collector


def build_batches(
    config: PrimeConfig,
    collector: Collector,
    stream: PromptQueue,
    rollout: RolloutParts,
    warn: Callable[[str], None],
) -> BatchSource:
    """Return the source of a trainer's batches, whose schedule follows from rollout.max_staleness."""
    # A replay trains on what another run has sampled, in the order of that run.
    if not config.rollout.samples_ahead or rollout.replay is not None:
        return OnPolicy(collector, stream, warn)
    if config.rollout.max_staleness > 1:
        return Continuous(collector, config.rollout.max_staleness, config.trainer.num_steps, warn)
    return OneStepOff(
        collector,
        stream,
        rollout.engine,
        num_steps=config.trainer.num_steps,
        in_background=config.rollout.uses_servers,
        settings=_batch_settings(config),
        warn=warn,
    )


def _batch_settings(config: PrimeConfig) -> dict[str, Any]:
    """Return the options that the content and the form of a batch depend on, by name, as JSON values."""
    sampling = ("group_size", "max_response_tokens", "temperature", "top_p")
    return {
        "trainer.prompts_per_step": config.trainer.prompts_per_step,
        **{f"rollout.{name}": getattr(config.rollout, name) for name in sampling},
        "filter": config.filter.model_dump(mode="json"),
        "environment": config.environment.model_dump(mode="json"),
        "policy.num_minibatches": config.policy.num_minibatches,
        "prm.num_minibatches": config.prm.num_minibatches,
        "prm.granularity": config.prm.granularity,
    }


def _sampling(config: PrimeConfig, stop_ids: Sequence[int]) -> SamplingParams:
    return SamplingParams(
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        stop_token_ids=tuple(stop_ids),
        max_turns=config.environment.max_turns,
        max_turn_tokens=config.environment.max_turn_tokens,
    )
