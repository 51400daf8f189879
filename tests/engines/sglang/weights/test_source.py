"""The sending side fits the layout of the servers. Syncs as a whole run against real servers in test_shard_sync.py."""

import pytest
import torch

from megatron_prime.engines.sglang.weights.source import WeightSource, join_blocks
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.types import WeightBlock
from tests.support.one_rank import OneRank
from tests.support.tiny_models import save_tiny_model


@pytest.fixture
def policy(tmp_path):
    model = save_tiny_model("qwen2", tmp_path)
    policy = OneRank(tmp_path)
    policy.fill(model.state_dict())
    policy.model = model
    return policy


def source(policy, engines):
    return WeightSource.build(policy.shape, policy.parameters, policy.topology, policy.dtype, engines)


def test_servers_on_training_ranks_get_weights_by_ipc_and_others_by_a_group(policy):
    assert source(policy, EngineLayout.beside(2, 1, 1)).sender.backend == "ipc"
    assert source(policy, EngineLayout.consecutive(2, 1, first_rank=1)).sender.backend == "gloo"


def test_whole_tensors_are_gathered(policy):
    whole = source(policy, EngineLayout.consecutive(1, 2, first_rank=1)).gather()
    state = policy.model.state_dict()
    assert whole.keys() == state.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in state.items())


def test_blocks_are_joined_in_order():
    whole = torch.arange(12.0).view(4, 3)
    blocks = [
        WeightBlock("w", 0, 2, whole[2:]),
        WeightBlock("w", 0, 0, whole[:2]),
        WeightBlock("v", 0, 0, whole[0]),
    ]
    joined = join_blocks(blocks)
    assert torch.equal(joined["w"], whole) and torch.equal(joined["v"], whole[0])
