"""What the training ranks do in the tests of shard-to-shard syncs into real servers, to which they attach by URL."""

import torch
from layout_worker import topology_of

from megatron_prime.config.schema import SGLangConfig
from megatron_prime.models.builder import build_model
from megatron_prime.models.hf_checkpoint import HFCheckpointReader
from megatron_prime.models.hf_convert import import_hf
from megatron_prime.parallel.collectives import all_gather_lists
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.sglang_path import ShardWeights, shard_weight_sync
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.sglang_engine import SGLangEngine
from megatron_prime.types import SamplingParams

SMALL_BUCKET = 24 << 10
"""Bytes: the tiny models then travel in several buckets, the embedding in one of its own."""


def make_engine(folder, urls, engine_tp, ranks, run_dir, timeout_s=60.0):
    """An engine attached to servers, and its weight path."""
    paths = []

    def make_path(driver, fleet):
        paths.append(ShardWeights(driver, fleet, ranks=ranks, timeout_s=timeout_s))
        return paths[0]

    engine = SGLangEngine(
        folder,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=SGLangConfig(
            urls=tuple(urls), tensor=engine_tp, control_timeout_s=timeout_s, startup_timeout_s=60
        ),
        run_dir=run_dir,
        ranks=ranks,
        weights=make_path,
    )
    return engine, paths[0]


def sync_layouts(layouts, folders, urls, engine_tp, prompts, run_dir):
    """Of each layout, what the servers answer after a sync of each of the folders' weights."""
    reports = {}
    for layout in layouts:
        topology = topology_of(layout)
        gather = lambda items, topology=topology: all_gather_lists(items, topology)  # noqa: E731
        ranks = Ranks(topology.rank, topology.world_size, gather)
        engine, path = make_engine(folders[0], urls, engine_tp, ranks, run_dir)
        built = build_model(folders[0], topology)
        parameters = dict(built.module.named_parameters())
        engines = EngineLayout.consecutive(len(urls), engine_tp, first_rank=topology.world_size)
        sync = shard_weight_sync(
            engine,
            path,
            built.shape,
            parameters,
            topology,
            torch.float32,
            engines,
            max_bucket_bytes=SMALL_BUCKET,
        )
        report = {"rollouts": [], "checksums": [], "served": []}
        for version, folder in enumerate(folders, start=3):
            import_hf(parameters, built.parameters, HFCheckpointReader(folder).read_slice)
            sync.push(version)
            params = SamplingParams(max_response_tokens=6, temperature=0.0)
            report["rollouts"].append(engine.generate(prompts, params, group_size=1, stream_key=0))
            report["checksums"].append(engine.weight_checksums())
            report["served"].append(engine._driver.run(engine._weights._conductor._fleet.clients and served(engine)))
        report["stats"] = path.stats
        engine.close()
        reports[layout] = report
    return reports
