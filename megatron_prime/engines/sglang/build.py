"""Builds the SGLang engine of a run and the weight sync by the configured transport."""

import os

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.parts import EngineParts
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.weights.disk_sync import DiskSync
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.engines.sglang.weights.source import ON_RANK_0, WeightSource
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.models.builder import BuiltModel
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.transport import RankTransport, plan_for
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_sync import WeightSync


def build_sglang_engine(config: PrimeConfig, topology: Topology, ranks: Ranks) -> EngineParts:
    """Start the servers in the background, or attach to them. Raises ValueError as `SGLangEngine` does."""
    engine = SGLangEngine(
        config.model.path,
        device="cuda" if topology.platform.is_cuda else "cpu",
        dtype=config.platform.dtype,
        seed=config.seed,
        settings=config.rollout.sglang,
        run_dir=config.run_dir,
        ranks=ranks,
        gpu_bytes=topology.platform.gpu_memory_bytes,
        check_placement=config.rollout.overlap_fault,
        continues_responses=config.rollout.partial == "continue",
    )
    settings = engine.settings

    def make_weight_sync(policy: BuiltModel) -> WeightSync:
        if settings.weight_transport == "disk":
            return _disk_sync(config, topology, engine, policy)
        return _shard_sync(settings, topology, engine, policy)

    where = "on each node" if settings.nodes == "all" else "here"
    started = f"{settings.num_servers} started {where}, logs in {config.run_dir / 'sglang'}"
    note = f"waiting for the SGLang servers ({', '.join(settings.urls) or started})"
    return EngineParts(engine, make_weight_sync, note)


def _disk_sync(
    config: PrimeConfig, topology: Topology, engine: SGLangEngine, policy: BuiltModel
) -> WeightSync:
    dtype = topology.platform.dtype
    plan = plan_for(policy.shape, topology, ON_RANK_0, dtype)
    return DiskSync(
        engine,
        RankTransport(plan, policy.named_parameters(), topology, dtype),
        model_path=config.model.path,
        folder=engine.folder,
        tensors=hf_tensors(policy.shape),
        dtype=dtype,
    )


def _shard_sync(
    settings: SGLangConfig, topology: Topology, engine: SGLangEngine, policy: BuiltModel
) -> WeightSync:
    source = WeightSource.build(
        policy.shape,
        policy.named_parameters(),
        topology,
        topology.platform.dtype,
        _engine_layout(settings, topology, engine),
        max_bucket_bytes=settings.weight_bucket_mib << 20,
        is_quantized=settings.quantization == "fp8",
        sends_changes=settings.sends_changes(is_colocated=engine.is_colocated),
    )
    return ShardSync(
        engine,
        source,
        timeout_s=settings.control_timeout_s,
        full_check_every=settings.weight_full_check_every,
    )


def _engine_layout(settings: SGLangConfig, topology: Topology, engine: SGLangEngine) -> EngineLayout:
    """Return the ranks of the servers: on training ranks for ipc, otherwise numbered after the training job's."""
    # The number of a rank decides how it is reached: below the world size by the training rank on the same device,
    # otherwise through a process group.
    if settings.weight_transport != "ipc":
        return EngineLayout.consecutive(
            engine.num_servers, settings.tensor, ep=settings.expert, first_rank=topology.world_size
        )
    first_ranks = engine.nodes.first_ranks
    per_node = topology.world_size // len(first_ranks)
    # A GPU of training ranks is known by its name; its place there is the local rank that uses it.
    places = {name: place for place, name in enumerate(engine.first_node_gpus)} if settings.gpu_ids else {}
    # torchrun and srun set LOCAL_WORLD_SIZE; a process that was started by hand is alone on its node.
    return EngineLayout.beside(
        engine.num_servers,
        settings.tensor,
        int(os.environ.get("LOCAL_WORLD_SIZE", str(per_node))),
        ep=settings.expert,
        gpus=[places.get(str(gpu), gpu) for gpu in settings.gpu_ids],
        first_ranks=first_ranks,
    )
