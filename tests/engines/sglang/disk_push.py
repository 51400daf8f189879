"""A weight sync by way of files from a trainer of one process, as tests of the engine need it."""

import torch

from megatron_prime.engines.sglang.weights.disk_sync import DiskSync
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.resharding.transport import RankTransport
from tests.support.one_rank import OneRank


def disk_sync(engine, policy, model_path, folder, transport=RankTransport):
    return DiskSync(
        engine,
        policy.transport(transport),
        model_path=model_path,
        folder=folder,
        tensors=hf_tensors(policy.shape),
        dtype=torch.float32,
    )


def push(engine, model, version):
    """Push the weights of a live model to the engine's servers."""
    policy = OneRank(model.path)
    policy.fill(model.hf.state_dict())
    disk_sync(engine, policy, model.path, engine.folder).push(version)
