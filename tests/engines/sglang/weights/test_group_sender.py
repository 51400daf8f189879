"""The sender's parts. Whole transfers run to real servers in test_shard_sync.py."""

from datetime import timedelta

import torch

from megatron_prime.engines.sglang.loader.signing import SignedStore
from megatron_prime.engines.sglang.loader.wire import checksum
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan
from megatron_prime.engines.sglang.weights.group_sender import GroupSender
from megatron_prime.engines.sglang.weights.sender import Rendezvous
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_shape


def sender():
    shape = make_shape()
    pieces = local_parameters(shape, TrainingLayout(), 0)
    parameters = {piece.megatron_name: torch.randn(piece.shape) for piece in pieces}
    plan = plan_reshard(shape, TrainingLayout(), EngineLayout.consecutive(1, 2, first_rank=1))
    platform = Platform(torch.device("cpu"), "gloo", torch.bfloat16, timedelta(seconds=5))
    topology = Topology(platform, 0, 1, 1, 0, 1, 0, 1, 0, False)
    return GroupSender(BucketedPlan(plan, 10**6, "bfloat16"), parameters, topology, torch.bfloat16)


def test_slices_are_cast_at_the_source_and_packed_with_their_checksums():
    shards = sender()
    [bucket] = shards._buckets
    slices = [(t.dim, shards._slice(t)) for t in bucket[0, 1]]
    assert {tensor.dtype for _, tensor in slices} == {torch.bfloat16}
    sums = torch.stack([checksum(tensor) for _, tensor in slices])
    packed, last = shards.messages(slices, sums)
    assert torch.equal(packed, torch.cat([tensor.reshape(-1) for _, tensor in slices]))
    assert torch.equal(last, sums)


def test_missing_receivers_are_faults_in_the_report_and_no_exception():
    store = SignedStore.host("127.0.0.1", 1, "key")
    rendezvous = Rendezvous(
        "a", ("127.0.0.1", store.port), store.under("a").key, "g", 3, (((0, 0), 1), ((0, 1), 2)), 1.0
    )
    shards = sender()
    report = shards.send(rendezvous)
    assert list(report.faults) == [0] and "rank 0" in report.faults[0]
    assert shards.groups == [] and shards.backend == "gloo"
