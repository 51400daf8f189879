"""Every weight sync has the methods and parameters of the protocol."""

import inspect

import pytest

from megatron_prime.engines.sglang.weights.disk_sync import DiskSync
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.resharding.block_sync import BlockSync
from megatron_prime.rollout.weight_sync import WeightSync

MEMBERS = [name for name in vars(WeightSync) if not name.startswith("_")]


def test_the_protocol_is_push_resync_and_close():
    assert set(MEMBERS) == {"push", "resync", "close"}


@pytest.mark.parametrize("sync", [BlockSync, DiskSync, ShardSync])
@pytest.mark.parametrize("name", MEMBERS)
def test_every_sync_has_the_same_signatures(sync, name):
    assert inspect.signature(getattr(sync, name)) == inspect.signature(getattr(WeightSync, name))
