"""The training ranks' part in the tests of shard-to-shard syncs into real servers, which they attach to by URL."""

import json
from functools import partial

import torch

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.engines.sglang.weights.source import WeightSource
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.convert import import_hf
from megatron_prime.models.builder import build_model
from megatron_prime.parallel.collectives import all_gather_lists
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_intake import tensor_checksum
from megatron_prime.types import SamplingParams
from tests.support.layout_worker import topology_of

IPC = " by ipc"
SMALL_BUCKET = 24 << 10
"""Bytes: the tiny models then travel in several buckets, the embedding in one of its own."""


def sync_layouts(layouts, folders, engine_settings, prompts, run_dir):
    """Return, for each layout, the servers' weights and answers after a sync of each of the folders' weights.

    A layout ends with IPC to hand weights over in shared memory.
    """
    return {layout: _sync(layout, folders, engine_settings, prompts, run_dir) for layout in layouts}


def _sync(layout, folders, engine_settings, prompts, run_dir):
    engine_settings = engine_settings | {"weight_transport": "ipc" if layout.endswith(IPC) else "shards"}
    topology = topology_of(layout.removesuffix(IPC))
    ranks = Ranks(topology.rank, topology.world_size, partial(all_gather_lists, topology=topology))
    settings = SGLangConfig(**engine_settings, control_timeout_s=60, startup_timeout_s=60)
    engine = SGLangEngine(
        folders[0],
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=settings,
        run_dir=run_dir,
        ranks=ranks,
    )
    built = build_model(folders[0], topology)
    parameters = dict(built.module.named_parameters())
    sizes = {"num_engines": len(settings.urls), "tp": settings.tensor, "ep": settings.expert}
    if settings.weight_transport == "ipc":
        engines = EngineLayout.beside(num_local_ranks=topology.world_size, **sizes)
    else:
        engines = EngineLayout.consecutive(first_rank=topology.world_size, **sizes)
    source = WeightSource.build(
        built.shape, parameters, topology, torch.float32, engines, max_bucket_bytes=SMALL_BUCKET
    )
    sync = ShardSync(engine, source, timeout_s=60, full_check_every=2)
    report = {"rollouts": [], "checksums": [], "full_checks": [], "pushes": []}
    params = SamplingParams(max_response_tokens=6, temperature=0.0)
    for version, folder in enumerate(folders, start=3):
        import_hf(parameters, built.parameters, HFCheckpointReader(folder).read_slice)
        report["pushes"].append(sync.push(version))
        report["rollouts"].append(engine.generate(prompts, params, group_size=1, stream_key=0))
        checksums = {name: tensor_checksum(tensor) for name, tensor in source.gather().items()}
        report["checksums"].append(dict(ranks.gather_all([*checksums.items()])))
        report["full_checks"].append(sync.full_check())
    if topology.is_last_stage:
        # Chunks of a virtual pipeline are numbered before it.
        norm = next(name for name in parameters if name.endswith("decoder.final_layernorm.weight"))
        with torch.no_grad():
            parameters[norm][-1] += 1
    report["foreign"] = sync.full_check()
    report["stats"] = json.loads(json.dumps({n: getattr(sync.stats, n) for n in sync.stats.__slots__}))
    report["num_needed"] = sum(t.num_bytes for t in source.plan.reshard.transfers)
    sync.close()
    engine.close()
    return report
