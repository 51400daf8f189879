"""Calls are recorded with their kind, size and order."""

import torch
import torch.distributed as dist

from megatron_prime.rehearsal.collectives import Collective, CollectiveRecord, Group, GroupCalls, call_of

GROUP = Group("DATA", (4, 6, 8, 10))


def test_the_size_of_a_call_is_that_of_its_largest_buffer():
    part, whole = torch.zeros(2, 3), torch.zeros(8, 3)
    assert call_of("all_gather_single", GROUP, [whole, part]) == Collective("all_gather", 96)
    assert call_of("reduce_scatter_single", GROUP, [part, whole]) == Collective("reduce_scatter", 96)
    assert call_of("allgather", GROUP, [[[part] * 4], [part]]) == Collective("all_gather", 96)


def test_peers_and_roots_are_global_ranks():
    options = dist.BroadcastOptions()
    options.rootRank = 2
    assert call_of("broadcast", GROUP, [[torch.zeros(5)], options]) == Collective("broadcast", 20, 8)
    assert call_of("send", GROUP, [[torch.zeros(5)], 3, 0]) == Collective("send", 20, 10)


def test_pickled_objects_have_no_size():
    assert call_of("allreduce", GROUP, [[torch.zeros(5, dtype=torch.uint8)]]).num_bytes == 0


def test_equal_neighbours_are_counted():
    record = CollectiveRecord()
    one, other = Collective("all_reduce", 8), Collective("barrier", 0)
    for call in (one, one, other, one):
        record.note(GROUP, call)
    calls = record.groups[GROUP]
    assert calls.runs() == [(one, 2), (other, 1), (one, 1)]
    assert calls.counts() == {"all_reduce": (3, 24), "barrier": (1, 0)}
    assert GroupCalls().counts() == {}
