"""Builds the embedded engine of a run."""

from megatron_prime.config.run import PrimeConfig
from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.parts import EngineParts
from megatron_prime.models.builder import BuiltModel
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.block_sync import embedded_weight_sync
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_sync import WeightSync


def build_local_engine(config: PrimeConfig, topology: Topology, ranks: Ranks) -> EngineParts:
    """Build one transformers model per training rank. Raises ValueError when model.path has no config.json."""
    platform = topology.platform
    engine = LocalEngine(
        config.model.path,
        device=platform.device,
        dtype=platform.dtype,
        seed=config.seed,
        max_batch_size=config.rollout.max_batch_size,
        ranks=ranks,
    )

    def make_weight_sync(policy: BuiltModel) -> WeightSync:
        return embedded_weight_sync(
            engine.weights, policy.shape, policy.named_parameters(), topology, platform.dtype
        )

    return EngineParts(engine, make_weight_sync)
