"""Builds the parts of a run from its configuration: the choice of platform, engine and transport, once."""

from dataclasses import dataclass

from megatron_prime.config.schema import ParallelConfig, PrimeConfig
from megatron_prime.data.tokenizer import load_tokenizer, stop_token_ids
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.parallel.collectives import all_gather_lists
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import Topology, build_topology
from megatron_prime.parallel.watchdog import start_watchdog
from megatron_prime.rewards import VerifierPool
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.local_engine import LocalEngine
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.sglang_engine import SGLangEngine
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import SamplingParams


def start_topology(config: PrimeConfig, data_parallel_only: bool = False) -> Topology:
    """Join the job and lay the ranks out; `data_parallel_only` for commands that build no Megatron model."""
    settings = config.platform
    platform = select_platform(
        settings.device, settings.dtype, settings.threads_per_process, settings.timeout_s
    )
    platform.start_process_group()
    parallel = ParallelConfig() if data_parallel_only else config.parallel
    topology = build_topology(
        platform,
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence_parallel,
        config.seed,
        context=parallel.context,
    )
    start_watchdog(
        topology.rank, topology.world_size, settings.timeout_s, config.run_dir / "reports", platform.is_cuda
    )
    return topology


def scoring_settings(config: PrimeConfig, temperature: float = 1.0) -> ScoringSettings:
    """How models score responses."""
    return ScoringSettings(
        max_tokens_per_microbatch=config.trainer.max_tokens_per_microbatch,
        chunk_tokens=config.trainer.logprob_chunk_tokens,
        temperature=temperature,
    )


@dataclass(frozen=True)
class RolloutParts:
    """What samples and judges."""

    engine: Engine
    verifier: RolloutVerifier
    pool: VerifierPool
    sampling: SamplingParams

    def close(self) -> None:
        """End the engine and the verifier's processes."""
        self.pool.close()
        self.engine.close()


def build_rollout(config: PrimeConfig, topology: Topology) -> RolloutParts:
    """The engine that the configuration names, without weights, and the verifier."""
    ranks = Ranks(topology.rank, topology.world_size, gather=lambda items: all_gather_lists(items, topology))
    tokenizer = load_tokenizer(config.model.path)
    engine = _build_engine(config, topology, ranks)
    reward = config.reward
    pool = VerifierPool(reward.verifier, reward.num_workers, reward.timeout_s)
    sampling = SamplingParams(
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        stop_token_ids=stop_token_ids(tokenizer, config.model.path),
    )
    verifier = RolloutVerifier(pool.verify_all, tokenizer, ranks)  # type: ignore[arg-type]
    return RolloutParts(engine, verifier, pool, sampling)


def _build_engine(config: PrimeConfig, topology: Topology, ranks: Ranks) -> LocalEngine | SGLangEngine:
    platform = topology.platform
    if config.rollout.engine == "sglang":
        return SGLangEngine(
            config.model.path,
            device="cuda" if platform.is_cuda else "cpu",
            dtype=config.platform.dtype,
            seed=config.seed,
            settings=config.rollout.sglang,
            run_dir=config.run_dir,
            ranks=ranks,
        )
    return LocalEngine(
        config.model.path,
        device=platform.device,
        dtype=platform.dtype,
        seed=config.seed,
        max_batch_size=config.rollout.max_batch_size,
        ranks=ranks,
    )
