"""Bytes counted per flow against a count of single transfers."""

from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import summary
from tests.support.plan_shapes import LLAMA_70B, make_shape


def test_replicas_share_the_load_of_sending():
    training = TrainingLayout(tp=8, pp=4, dp=4)
    counted = summary(plan_reshard(LLAMA_70B, training, EngineLayout.consecutive(16, 8, first_rank=128)))
    assert len(counted.sent_bytes_by_rank) == 128
    for pp_rank in range(4):
        loads = [counted.sent_bytes_by_rank[rank] for rank in range(pp_rank * 32, pp_rank * 32 + 32)]
        assert max(loads) <= 1.02 * sum(loads) / len(loads)


def test_every_byte_is_counted_once():
    plan = plan_reshard(make_shape(), TrainingLayout(tp=2, pp=2), EngineLayout.consecutive(2, 2))
    counted = summary(plan)
    sent, received, local = {}, {}, 0
    for transfer in plan.transfers:
        if transfer.source_rank == transfer.target_rank:
            local += transfer.num_bytes
        else:
            sent[transfer.source_rank] = sent.get(transfer.source_rank, 0) + transfer.num_bytes
            received[transfer.target_rank] = received.get(transfer.target_rank, 0) + transfer.num_bytes
    assert counted.local_bytes == local
    assert counted.sent_bytes_by_rank == sent
    assert counted.received_bytes_by_rank == received
    assert counted.network_bytes == sum(sent.values()) == counted.lower_bound_bytes
    assert counted.delivered_bytes == local + counted.network_bytes


def test_equal_layouts_on_the_same_ranks_move_nothing():
    shape = make_shape(vocab_size=96, vocab_divisor=32)
    counted = summary(plan_reshard(shape, TrainingLayout(tp=2), EngineLayout.consecutive(1, 2)))
    assert counted.network_bytes == counted.lower_bound_bytes == 0
    assert counted.sent_bytes_by_rank == counted.received_bytes_by_rank == {}


def test_the_busiest_link_determines_the_duration():
    training, engines = TrainingLayout(tp=2, pp=2), EngineLayout.consecutive(2, 2, first_rank=4)
    plan = plan_reshard(make_shape(), training, engines, ranks_per_node=4)
    loads = {}
    for transfer in plan.transfers:
        assert not plan.is_within_node(transfer.source_rank, transfer.target_rank)
        for end in (("from", transfer.source_rank), ("to", transfer.target_rank)):
            loads[end] = loads.get(end, 0) + transfer.num_bytes
    assert summary(plan).seconds(10.0, 1e9) == max(loads.values()) / 10.0
    one_node = summary(plan_reshard(make_shape(), training, engines, ranks_per_node=8))
    assert one_node.seconds(10.0, 20.0) == max(one_node.received_bytes_by_rank.values()) / 20.0
