"""Builds the parts of a run from its configuration: the choice of platform, engine and transport, once."""

import os
from dataclasses import dataclass, replace

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.data.tokenizer import load_tokenizer, stop_token_ids
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.weights.shards import ShardWeights, shard_weight_sync
from megatron_prime.logprobs.output_layer import select_kernel
from megatron_prime.models.builder import BuiltModel
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.models.te_layers import check_acceleration, lost_without
from megatron_prime.observability import Progress
from megatron_prime.parallel.collectives import all_gather_lists
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import Topology, build_topology
from megatron_prime.parallel.watchdog import start_watchdog
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.weight_sync import WeightSync, embedded_weight_sync, gathered_weight_sync
from megatron_prime.rewards import RewardPools
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import SamplingParams


def start_topology(config: PrimeConfig, data_parallel_only: bool = False) -> Topology:
    """Join the job and lay the ranks out; `data_parallel_only` for commands that build no Megatron model.

    Raises ValueError where the configuration asks for what this machine does not have.
    """
    settings = config.platform
    platform = select_platform(
        settings.device, settings.dtype, settings.threads_per_process, settings.timeout_s, settings.layers
    )
    if not data_parallel_only:
        select_kernel(config.trainer.logprob_kernel, platform.is_cuda)
        check_acceleration(config.acceleration, platform)
    platform.start_process_group()
    parallel = ParallelConfig() if data_parallel_only else config.parallel
    topology = build_topology(
        platform,
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence_parallel,
        config.seed,
        context=parallel.context,
        virtual_pipeline=parallel.virtual_pipeline,
        expert=parallel.expert,
        expert_tensor=parallel.expert_tensor,
    )
    lost = lost_without(platform)
    if lost is not None and topology.rank == 0 and not data_parallel_only:
        Progress().line(f"WARNING: {lost}")
    start_watchdog(
        topology.rank, topology.world_size, settings.timeout_s, config.run_dir / "reports", platform.is_cuda
    )
    return replace(topology, megatron=config.megatron)


def scoring_settings(config: PrimeConfig, temperature: float = 1.0) -> ScoringSettings:
    """How models score responses."""
    return ScoringSettings(
        max_tokens_per_microbatch=config.trainer.max_tokens_per_microbatch,
        chunk_tokens=config.trainer.logprob_chunk_tokens,
        temperature=temperature,
        kernel=config.trainer.logprob_kernel,
    )


@dataclass(frozen=True)
class RolloutParts:
    """What samples and judges."""

    engine: Engine
    verifier: RolloutVerifier
    pool: RewardPools
    sampling: SamplingParams
    shard_weights: ShardWeights | None = None
    """How the engine gets weights from the training ranks' memory, where it is not in there itself."""

    def close(self) -> None:
        """End the engine and the verifier's processes."""
        self.pool.close()
        self.engine.close()


def build_rollout(config: PrimeConfig, topology: Topology) -> RolloutParts:
    """The engine that the configuration names, without weights, and the verifier."""
    ranks = Ranks(topology.rank, topology.world_size, gather=lambda items: all_gather_lists(items, topology))
    tokenizer = load_tokenizer(config.model.path)
    shard_weights: list[ShardWeights] = []
    engine = _build_engine(config, topology, ranks, shard_weights)
    pool = RewardPools(config.reward)
    sampling = SamplingParams(
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        stop_token_ids=stop_token_ids(tokenizer, config.model.path),
    )
    verifier = RolloutVerifier(pool.verify_all, tokenizer, ranks)  # type: ignore[arg-type]
    return RolloutParts(engine, verifier, pool, sampling, *shard_weights)


def build_weight_sync(
    config: PrimeConfig, topology: Topology, rollout: RolloutParts, policy: BuiltModel
) -> WeightSync:
    """From the policy's parameters to the engine's."""
    parameters = policy.named_parameters()
    shape, dtype = policy.shape, topology.platform.dtype
    if config.rollout.engine == "local":
        return embedded_weight_sync(rollout.engine, shape, parameters, topology, dtype)
    if rollout.shard_weights is None:
        return gathered_weight_sync(rollout.engine, shape, parameters, topology, dtype)
    settings = config.rollout.sglang
    engine = rollout.engine
    assert isinstance(engine, SGLangEngine), "the others need no shards"
    if settings.weight_transport == "ipc":
        first_ranks = engine.nodes.first_ranks
        per_node = topology.world_size // len(first_ranks)
        num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", str(per_node)))
        engines = EngineLayout.beside(
            engine.num_servers,
            settings.tensor,
            num_local_ranks,
            ep=settings.expert,
            gpus=settings.gpu_ids,
            first_ranks=first_ranks,
        )
    else:
        engines = EngineLayout.consecutive(
            engine.num_servers, settings.tensor, ep=settings.expert, first_rank=topology.world_size
        )
    return shard_weight_sync(
        rollout.engine,
        rollout.shard_weights,
        shape,
        parameters,
        topology,
        dtype,
        engines,
        max_bucket_bytes=settings.weight_bucket_mib << 20,
        is_quantized=settings.quantization == "fp8",
    )


def _build_engine(
    config: PrimeConfig, topology: Topology, ranks: Ranks, shard_weights: list[ShardWeights]
) -> LocalEngine | SGLangEngine:
    platform = topology.platform
    if config.rollout.engine == "sglang":
        settings = config.rollout.sglang

        def make_shard_weights(driver: Driver, fleet: Fleet | None) -> ShardWeights:
            shard_weights.append(
                ShardWeights(
                    driver,
                    fleet,
                    ranks=ranks,
                    timeout_s=settings.control_timeout_s,
                    full_check_every=settings.weight_full_check_every,
                )
            )
            return shard_weights[0]

        return SGLangEngine(
            config.model.path,
            device="cuda" if platform.is_cuda else "cpu",
            dtype=config.platform.dtype,
            seed=config.seed,
            settings=config.rollout.sglang,
            run_dir=config.run_dir,
            ranks=ranks,
            weights=make_shard_weights if settings.weight_transport != "disk" else None,
        )
    return LocalEngine(
        config.model.path,
        device=platform.device,
        dtype=platform.dtype,
        seed=config.seed,
        max_batch_size=config.rollout.max_batch_size,
        ranks=ranks,
    )
