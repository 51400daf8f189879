"""Functions that every rank runs in test_transport.py and test_block_sync.py."""

import torch

from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.convert import import_hf
from megatron_prime.models.builder import build_model
from megatron_prime.parallel.collectives import all_gather_lists
from megatron_prime.resharding.block_sync import BlockSync, embedded_weight_sync
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.transport import RankTransport, plan_for
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.types import Prompt, SamplingParams
from tests.support.layout_worker import topology_of

CASES = [
    *((layout, name) for layout in ("tp2", "pp2", "dp2", "tp2 pp2") for name in ("qwen2 tied", "qwen3")),
    ("pp2 vpp2", "qwen2 tied"),
    ("pp2 uneven", "qwen2 tied"),
    ("ep2", "qwen3 moe"),
    ("tp2+sp etp2", "mixtral"),
    ("pp2 vpp2 ep2", "mixtral"),
]
"""(layout, model) pairs to test."""
LARGEST_TENSOR_BYTES = 300 * 32 * 4
"""Bytes of the fp32 embedding of the tiny models, the smallest bucket that is allowed."""


def reshard(cases, checkpoints, prompts, num_tokens):
    """Run deliveries and weight syncs of each (layout, model) in `cases`.

    Args:
        checkpoints: name -> (folder, folder of the same model with other weights).
    """
    return {
        (layout, name): {
            "deliveries": _deliveries(layout, checkpoints[name][0]),
            "syncs": _syncs(layout, checkpoints[name], prompts, num_tokens),
        }
        for layout, name in cases
    }


def _deliveries(layout, folder):
    """Return the blocks of each bucket for engines on one rank, on two ranks, and in small buckets."""
    topology = topology_of(layout)
    built = build_model(folder, topology)
    parameters = dict(built.module.named_parameters())

    def deliver(engines, dtype=torch.float32, **options):
        plan = plan_for(built.shape, topology, engines, dtype)
        transport = RankTransport(plan, parameters, topology, dtype, **options)
        return [
            [(block.hf_name, block.dim, block.start, block.tensor.clone()) for block in blocks]
            for blocks in transport.deliver()
        ]

    first_alone = EngineLayout(1, 1, ((0,),))
    last_alone = EngineLayout(1, 1, ((topology.world_size - 1,),))
    report = {
        "first": deliver(first_alone),
        "last": deliver(last_alone),
        "split": deliver(EngineLayout.consecutive(1, tp=2)),
        "small": deliver(first_alone, max_bucket_bytes=LARGEST_TENSOR_BYTES),
        "bf16": deliver(first_alone, torch.bfloat16),
        "again": deliver(first_alone),
    }
    try:
        deliver(first_alone, max_bucket_bytes=LARGEST_TENSOR_BYTES - 1)
    except ValueError as error:
        report["refused"] = str(error)
    return report


def _syncs(layout, folders, prompts, num_tokens):
    return {
        dtype: _sync(layout, folders, prompts, num_tokens, dtype, bucket_bytes)
        for dtype, bucket_bytes in (("fp32", None), ("bf16", LARGEST_TENSOR_BYTES // 2))
    }


def _sync(layout, folders, prompts, num_tokens, dtype, bucket_bytes):
    """Return checksums and greedy responses after a sync of the first and of the second weights."""
    topology = topology_of(layout, dtype)
    platform = topology.platform
    built = build_model(folders[0], topology)
    parameters = dict(built.module.named_parameters())
    engine = LocalEngine(
        folders[0],
        device=platform.device,
        dtype=platform.dtype,
        seed=0,
        max_batch_size=8,
        ranks=Ranks(topology.rank, topology.world_size, lambda items: all_gather_lists(items, topology)),
    )
    sync = embedded_weight_sync(engine.weights, built.shape, parameters, topology, platform.dtype)
    if bucket_bytes:
        engines = EngineLayout.consecutive(topology.world_size, tp=1)
        plan = plan_for(built.shape, topology, engines, platform.dtype)
        transport = RankTransport(plan, parameters, topology, platform.dtype, bucket_bytes)
        sync = BlockSync(engine.weights, transport)
    report = {"version": [engine.policy_version], "checksums": [], "responses": []}

    def note():
        params = SamplingParams(max_response_tokens=num_tokens, temperature=0.0)
        questions = [Prompt(index, tuple(ids), "") for index, ids in enumerate(prompts)]
        rollouts = engine.generate(questions, params, group_size=1, stream_key=0)
        report["version"].append(engine.policy_version)
        report["checksums"].append(engine.weights.checksums())
        report["responses"].append([list(rollout.response_ids) for rollout in rollouts])

    sync.push(3)
    note()
    import_hf(parameters, built.parameters, HFCheckpointReader(folders[1]).read_slice)
    note()  # the trainer's weights changed, the engine's did not
    sync.push(4)
    note()
    return report
