"""Buckets are handed over in shared memory. Whole syncs run to real servers in test_shard_sync.py."""

import threading
from datetime import timedelta

import pytest
import torch

from megatron_prime.engines.sglang.loader.receiver import _Instructions, _StagingReader
from megatron_prime.engines.sglang.loader.signing import SignedStore
from megatron_prime.engines.sglang.loader.wire import checksum
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan
from megatron_prime.engines.sglang.weights.ipc_sender import IpcSender
from megatron_prime.engines.sglang.weights.quantize import quantize_blocks
from megatron_prime.engines.sglang.weights.sender import Rendezvous
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_shape

TARGETS = ((0, 0), (0, 1))


WIDE = {
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "head_dim": 128,
}


def make_sender(max_bucket_bytes=200, is_quantized=False):
    """One training rank beside the two ranks of an engine."""
    shape = make_shape(**(WIDE if is_quantized else {}))
    pieces = local_parameters(shape, TrainingLayout(), 0)
    parameters = {piece.megatron_name: torch.randn(piece.shape) for piece in pieces}
    reshard = plan_reshard(shape, TrainingLayout(), EngineLayout.beside(1, 2, 1))
    plan = BucketedPlan(reshard, max_bucket_bytes, "bfloat16", from_host=True, is_quantized=is_quantized)
    platform = Platform(torch.device("cpu"), "gloo", torch.bfloat16, timedelta(seconds=5))
    topology = Topology(platform, 0, 1, 1, 0, 1, 0, 1, 0, False)
    return plan, parameters, IpcSender(plan, parameters, topology, torch.bfloat16)


def expected_slices(plan, parameters, target):
    """Return the slices that the target must have in the end, by bucket."""

    def tensors(t):
        whole = parameters[t.source_param].narrow(t.dim, t.source_local_start, t.length).bfloat16()
        if not t.hf_name.endswith("_proj.weight") or not plan.is_quantized:
            return [whole]
        return list(quantize_blocks(whole))

    return [[x for t in transfers for x in tensors(t)] for transfers in plan.received(*target) if transfers]


class Receiver(threading.Thread):
    """The other end, into tensors of its own; stops after some buckets."""

    def __init__(self, store, rank, expected, num_buckets):
        super().__init__(daemon=True)
        self.instructions = _Instructions(
            "try", rank, ("127.0.0.1", store.port), store.under("try").key, "ipc", None, 5.0, None
        )
        self.held = [[torch.empty_like(tensor) for tensor in bucket] for bucket in expected]
        self.num_buckets = num_buckets
        self.total, self.fault = torch.zeros(2, dtype=torch.int64), None

    def run(self):
        self.store = SignedStore.connect(*self.instructions.store, 5.0, self.instructions.key, "try/")
        staging = _StagingReader(self.instructions, self.store)
        try:
            for bucket in self.held[: self.num_buckets]:
                self.total += staging.receive([(0, [(0, view) for view in bucket])])
        except RuntimeError as error:
            self.fault = error


def hand_over(num_buckets, timeout_s=5.0, is_quantized=False):
    plan, parameters, sender = make_sender(is_quantized=is_quantized)
    store = SignedStore.host("127.0.0.1", 5, "key")
    expected = [expected_slices(plan, parameters, target) for target in TARGETS]
    receivers = [
        Receiver(store, rank, slices, num)
        for rank, (slices, num) in enumerate(zip(expected, num_buckets, strict=True))
    ]
    for receiver in receivers:
        receiver.start()
    members = tuple((target, 1 + place) for place, target in enumerate(TARGETS))
    rendezvous = Rendezvous(
        "try", ("127.0.0.1", store.port), store.under("try").key, "", 3, members, timeout_s
    )
    report = sender.send(rendezvous)
    for receiver in receivers:
        receiver.join(20)
        assert not receiver.is_alive()
    return sender, receivers, expected, report, store


def test_every_slice_arrives_through_two_halves_with_the_sources_checksums():
    sender, receivers, expected, report, _ = hand_over((99, 99))
    assert report.faults == {}
    for target, receiver, slices in zip(TARGETS, receivers, expected, strict=True):
        assert len(slices) > 4, "the halves are used again"
        assert receiver.fault is None
        for got, wanted in zip(receiver.held, slices, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        sums = sum(checksum(tensor) for bucket in slices for tensor in bucket)
        assert report.digests[target] == tuple(int(part) % (1 << 64) for part in sums)
        assert receiver.total.tolist() == sums.tolist()
    assert report.num_bytes == sum(t.numel() * 2 for slices in expected for bucket in slices for t in bucket)
    assert sender.groups == [] and sender.backend == "ipc"
    sender.drop_groups()


def test_quantized_slices_equal_those_of_the_quantized_tensor():
    _, receivers, expected, report, _ = hand_over((99, 99), is_quantized=True)
    assert report.faults == {}
    for target, receiver, slices in zip(TARGETS, receivers, expected, strict=True):
        assert receiver.fault is None
        assert {t.dtype for bucket in slices for t in bucket} == {
            torch.float8_e4m3fn,
            torch.float32,
            torch.bfloat16,
        }
        for got, wanted in zip(receiver.held, slices, strict=True):
            assert all(bytes_of(a) == bytes_of(b) for a, b in zip(got, wanted, strict=True))
        assert receiver.total.tolist() == [sum_of(report.digests[target][part]) for part in (0, 1)]


def sum_of(digest):
    """As a signed integer of 64 bits."""
    return digest - (1 << 64) if digest >= 1 << 63 else digest


def bytes_of(tensor):
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


def test_a_receiver_that_stops_is_a_fault_after_a_deadline():
    *_, receivers, _, report, _ = hand_over((99, 1), timeout_s=1.0)
    assert list(report.faults) == [0]
    assert "TP rank 1 took no weights: bucket 1 was not taken in 0.25 s" in report.faults[0]
    # The whole engine has failed in this attempt, so its other rank must give up as well.
    assert receivers[0].fault is not None and "gave up" in str(receivers[0].fault)


def test_a_receivers_slices_all_come_from_the_rank_beside_it():
    plan, _, _ = make_sender()
    for target in TARGETS:
        assert set(plan.incoming(*target)["sources"]) == {0}
    assert plan.hosted_by(0) == list(TARGETS) and plan.hosted_by(1) == []


@pytest.mark.parametrize(
    ("sizes", "num_local", "gpus", "first_ranks", "ranks"),
    [
        ((2, 2), 4, (), (0,), ((0, 1), (2, 3))),
        ((2, 1), 1, (), (0,), ((0,), (0,))),
        ((1, 2), 4, (2, 3), (0,), ((2, 3),)),
        ((2, 2), 4, (), (0, 4), ((0, 1), (4, 5))),
    ],
)
def test_engine_ranks_have_a_training_rank_beside_them(sizes, num_local, gpus, first_ranks, ranks):
    assert EngineLayout.beside(*sizes, num_local, gpus=gpus, first_ranks=first_ranks).ranks == ranks
